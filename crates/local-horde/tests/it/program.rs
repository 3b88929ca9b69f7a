//! The program as its users start it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use local_horde::WORKER_KEY;
use serde_json::{Value, json};

use crate::wire::{api, raw};

/// The program while it runs; it is killed with its test.
struct Started {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Started {
    fn with(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_local-horde"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Asks it to end and returns its last line and whether it ended well.
    fn ended(mut self) -> (String, bool) {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(asked.expect("kill").success());
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("the rest");
        let ended = self.child.wait().expect("an end");
        (rest.lines().last().unwrap_or_default().to_owned(), ended.success())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn address(line: &str, before: &str) -> SocketAddr {
    let rest = line.strip_prefix(before).expect("the words before the address");
    rest.trim_end_matches("/api").parse().expect("an address")
}

fn failed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_local-horde")).args(arguments).output();
    let output = output.expect("the program starts");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_files_requests_serves_them_spoils_a_way_and_prints_the_book_at_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let requests = folder.path().join("requests.json");
    let body = json!({ "prompt": "Once", "models": ["m-8B"] });
    let list = json!([{ "route": "generate/text/async", "body": body }]);
    std::fs::write(&requests, list.to_string()).expect("written");
    let file = requests.to_str().expect("a path");
    let mut program = Started::with(&["--file", file, "--json", "--spoil", "answer:502"]);
    assert!(program.line().starts_with("filed generate/text/async "));
    let clean = address(&program.line(), "listening on http://");
    assert!(program.line().contains(&format!("http://{clean}/local/ledger")));
    let spoiled = address(&program.line(), "spoiled way at http://");
    let pop = json!({ "name": "writer", "models": ["m-8B"] });
    let job = api(clean, "POST", "generate/text/pop", WORKER_KEY, &pop).await.json();
    assert_eq!(job["payload"]["prompt"], "Once");
    let page = raw(spoiled, "GET", "/api/v2/status/news", "", b"")
        .await
        .expect("a page");
    assert!(page.starts_with(b"HTTP/1.1 502"));
    let (last, well) = program.ended();
    let book: Value = serde_json::from_str(&last).expect("the book");
    let entry = &book["generations"][job["id"].as_str().expect("an id")];
    assert!(well && entry["fate"] == "open" && entry["worker"] == "writer", "{last}");
}

#[test]
fn what_it_cannot_do_it_says_with_the_value() {
    for (arguments, words) in [
        (&["--spoil", "drip"][..], "`drip` needs a number"),
        (&["--spoil", "storm:3"], "`storm` is none of"),
        (&["--ttl-factor", "NaN"], "--ttl-factor is `NaN`"),
        (&["--ttl-factor", "1e300"], "at most 1000"),
        (
            &["--file", "/nowhere/requests.json"],
            "could not read /nowhere/requests.json",
        ),
        (&["--host", "203.0.113.1"], "could not listen on 203.0.113.1:0"),
    ] {
        let said = failed(arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
