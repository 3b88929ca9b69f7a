//! Bridges against a small server on loopback that plays exchanges in the shape of KoboldCpp's and vLLM's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use textgen::bridge::{BridgeEngine, BridgeSettings, Dialect};
use textgen::{Finish, NoWatch, TextEngine, TextError, TextRequest, Watch};

/// What was asked: path and body.
pub type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// Serves `answer(path)`: a whole body, or `None` for silence after the head.
fn backend(answer: fn(&str) -> Option<String>) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Asked::default();
    let notes = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let notes = Arc::clone(&notes);
            std::thread::spawn(move || serve(stream, answer, &notes));
        }
    });
    (url, asked)
}

/// Path and body of the next request on a connection.
pub fn request_of(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    loop {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}

fn serve(stream: TcpStream, answer: fn(&str) -> Option<String>, notes: &Asked) {
    let mut reader = BufReader::new(stream);
    let (path, body) = request_of(&mut reader).unwrap();
    notes
        .lock()
        .unwrap()
        .push((path.clone(), serde_json::from_slice(&body).unwrap_or_default()));
    let stream = reader.get_mut();
    match answer(&path) {
        Some(text) if text.is_empty() => write!(
            stream,
            "HTTP/1.1 404 None\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        .unwrap(),
        Some(text) => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            )
            .unwrap();
        }
        None => {
            write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").unwrap();
            stream.flush().unwrap();
            // Silent until the other side ends the connection.
            let _ = stream.read(&mut [0]);
        }
    }
}

fn kobold(path: &str) -> Option<String> {
    let event = |token: &str| format!("event: message\ndata: {}\n\n", serde_json::json!({ "token": token }));
    Some(match path {
        "/api/v1/model" => r#"{"result": "koboldcpp/Mistral-7B"}"#.into(),
        "/api/extra/true_max_context_length" => r#"{"value": 8192}"#.into(),
        "/api/v1/config/max_length" => r#"{"value": 512}"#.into(),
        "/api/extra/generate/stream" => [" Hel", "lo 漢", ".\nUs", "er: no", " more"].map(event).concat(),
        _ => String::new(),
    })
}

fn openai(path: &str) -> Option<String> {
    let event = |text: &str, finish: Value| {
        format!(
            "data: {}\n\n",
            serde_json::json!({ "choices": [{ "text": text, "finish_reason": finish }] })
        )
    };
    Some(match path {
        "/v1/models" => r#"{"data": [{"id": "org/model", "max_model_len": 4096}]}"#.into(),
        "/v1/completions" => {
            event(" one", Value::Null) + &event(" two", Value::Null) + &event("", "length".into()) + "data: [DONE]\n\n"
        }
        _ => String::new(),
    })
}

fn silent(path: &str) -> Option<String> {
    if path == "/api/extra/generate/stream" {
        None
    } else {
        kobold(path)
    }
}

fn engine(dialect: Dialect, url: String) -> BridgeEngine {
    let settings = BridgeSettings {
        url,
        parallel: 3,
        stall_seconds: 5,
        ..BridgeSettings::default()
    };
    BridgeEngine::new(dialect, settings).unwrap()
}

fn request() -> TextRequest {
    TextRequest {
        stop: vec!["\nUser:".into()],
        seed: Some(5),
        ..TextRequest::new("Say hello", 40, 1_000)
    }
}

#[test]
fn koboldcpp_is_asked_what_it_is_and_stopped_at_the_stop_text() {
    let (url, asked) = backend(kobold);
    let engine = engine(Dialect::Kobold, url);
    let facts = engine.facts().unwrap();
    assert_eq!(
        (facts.model.as_str(), facts.context_tokens, facts.max_length),
        ("koboldcpp/Mistral-7B", 8_192, Some(512))
    );
    assert_eq!(facts.slots, 3);
    let answer = engine.generate(request(), &NoWatch).unwrap();
    assert_eq!(
        (answer.text.as_str(), answer.finish),
        (" Hello 漢.\nUser:", Finish::Stop)
    );
    let asked = asked.lock().unwrap();
    let (_, body) = asked.iter().find(|(path, _)| path.ends_with("/stream")).unwrap();
    assert_eq!(
        (&body["max_length"], &body["stop_sequence"][0]),
        (&40.into(), &"\nUser:".into())
    );
    assert_eq!(body["sampler_order"], serde_json::json!([6, 0, 1, 3, 4, 2, 5]));
    let (_, abort) = asked.iter().find(|(path, _)| path.ends_with("/abort")).unwrap();
    assert_eq!(abort["genkey"], body["genkey"]);
}

#[test]
fn an_openai_backend_streams_to_its_end() {
    let (url, asked) = backend(openai);
    let engine = engine(Dialect::OpenAi, url);
    let answer = engine.generate(request(), &NoWatch).unwrap();
    assert_eq!(
        (answer.text.as_str(), answer.finish, answer.tokens),
        (" one two", Finish::Length, 2)
    );
    assert_eq!(engine.facts().unwrap().context_tokens, 4_096);
    let asked = asked.lock().unwrap();
    let (_, body) = asked.iter().find(|(path, _)| path == "/v1/completions").unwrap();
    assert_eq!(
        (&body["model"], &body["truncate_prompt_tokens"]),
        (&"org/model".into(), &960.into())
    );
}

#[test]
fn a_backend_that_is_down_is_said_to_be_down() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let engine = engine(Dialect::Kobold, format!("http://{gone}"));
    let error = engine.facts().unwrap_err();
    assert!(
        matches!(&error, TextError::Unavailable(why) if why.contains("cannot be reached")),
        "{error}"
    );
    assert!(matches!(
        engine.generate(request(), &NoWatch),
        Err(TextError::Unavailable(_))
    ));
    assert!(
        BridgeEngine::new(
            Dialect::OpenAi,
            BridgeSettings {
                url: "ftp://x".into(),
                ..BridgeSettings::default()
            }
        )
        .is_err()
    );
}

/// A job that is not wanted any more.
pub struct Cancelled;

impl Watch for Cancelled {
    fn progress(&self, _: u32, _: u32) {}
    fn is_cancelled(&self) -> bool {
        true
    }
}

#[test]
fn a_silent_backend_is_left_when_the_job_is_cancelled() {
    let (url, asked) = backend(silent);
    let engine = engine(Dialect::Kobold, url);
    assert!(matches!(
        engine.generate(request(), &Cancelled),
        Err(TextError::Cancelled)
    ));
    assert!(asked.lock().unwrap().iter().any(|(path, _)| path.ends_with("/abort")));
}

/// Keeps connections for one request and answers; the second on the same connection is read and met by its end.
fn closes_kept_connections(answer: fn(&str) -> Option<String>) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Asked::default();
    let notes = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let notes = Arc::clone(&notes);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let Some((path, _)) = request_of(&mut reader) else {
                    return;
                };
                notes.lock().unwrap().push((path.clone(), Value::Null));
                let text = answer(&path).unwrap_or_default();
                let length = text.len();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                reader.get_mut().write_all((head + &text).as_bytes()).unwrap();
                let second = request_of(&mut reader).map(|(path, _)| format!("closed {path}"));
                notes.lock().unwrap().extend(second.map(|path| (path, Value::Null)));
            });
        }
    });
    (url, asked)
}

#[test]
fn a_kept_connection_that_the_backend_closed_costs_one_more_try() {
    let (url, asked) = closes_kept_connections(kobold);
    let engine = engine(Dialect::Kobold, url);
    let answer = engine.generate(request(), &NoWatch).unwrap();
    assert_eq!(answer.text, " Hello 漢.\nUser:");
    let asked = asked.lock().unwrap();
    assert!(
        asked.iter().any(|(path, _)| path.starts_with("closed")),
        "nothing was closed: {asked:?}"
    );
}

/// Ends the connection in the middle of the answer, or before it where `head` is false; counts the requests for text.
fn breaks_off(head: bool) -> (TextError, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let Some((path, _)) = request_of(&mut reader) else {
                continue;
            };
            let stream = reader.get_mut();
            let text = kobold(&path).unwrap_or_default();
            if path.ends_with("/stream") {
                *count.lock().unwrap() += 1;
                if head {
                    let promised = text.len() + 100;
                    write!(
                        stream,
                        "HTTP/1.1 200 OK\r\ncontent-length: {promised}\r\n\r\n{}",
                        &text[..50]
                    )
                    .unwrap();
                }
            } else {
                let length = text.len();
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}"
                )
                .unwrap();
            }
        }
    });
    let error = engine(Dialect::Kobold, url).generate(request(), &NoWatch).unwrap_err();
    let count = *asked.lock().unwrap();
    (error, count)
}

#[test]
fn an_answer_that_broke_off_is_not_asked_for_again() {
    let (error, count) = breaks_off(true);
    assert!(matches!(error, TextError::Unavailable(_)), "{error}");
    assert_eq!(count, 1, "it had begun");
    let (error, count) = breaks_off(false);
    assert!(matches!(error, TextError::Unavailable(_)), "{error}");
    assert_eq!(count, 2, "one more try, and no third");
}

#[test]
fn stop_text_bombs_are_bounded_and_harmless() {
    let start = std::time::Instant::now();
    let mut stop: Vec<String> = vec!["x".repeat(1 << 20), "y".repeat(1_999)];
    stop.extend((0..100_000).map(|count| format!("stop {count}")));
    stop.push("z".repeat(4 << 20));
    let bomb = TextRequest { stop, ..request() }.clamped();
    // The huge ones are left out, and those beside them are kept.
    assert_eq!(bomb.stop.len(), textgen::Limits::STOPS);
    assert_eq!((bomb.stop[0].len(), bomb.stop[1].as_str()), (1_999, "stop 0"));
    let long = (0..100_000).map(|count| format!("{count:>1900}")).collect();
    let bomb = TextRequest {
        stop: long,
        ..request()
    }
    .clamped();
    let bytes: usize = bomb.stop.iter().map(String::len).sum();
    assert!((1..=textgen::Limits::STOP_TOTAL_BYTES).contains(&bytes), "{bytes}");
    let same = vec!["same".to_owned(); 100_000];
    assert_eq!(
        TextRequest {
            stop: same,
            ..request()
        }
        .clamped()
        .stop,
        ["same"]
    );

    // What is left is looked for quickly, in an answer that nearly holds it everywhere.
    let near = "ab".repeat(900);
    let stop = (0..32).map(|count| format!("{near}{count}")).collect();
    let request = TextRequest { stop, ..request() }.clamped();
    let mut scanner = textgen::stop::StopScanner::new(&request.stop);
    let mut answer = Vec::new();
    for _ in 0..4_096 {
        answer.extend_from_slice(b"ab");
        assert_eq!(scanner.scan(&answer), None);
    }
    answer.extend_from_slice(b"7");
    assert!(scanner.scan(&answer).is_some());
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
