//! Bridges against a small server on loopback that plays exchanges in the shape of KoboldCpp's and vLLM's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use textgen::bridge::{BridgeEngine, BridgeSettings, Dialect};
use textgen::{Finish, NoWatch, TextEngine, TextError, TextRequest, Watch};

/// What was asked: path and body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

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

fn serve(stream: TcpStream, answer: fn(&str) -> Option<String>, notes: &Asked) {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).unwrap();
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
    reader.read_exact(&mut body).unwrap();
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

struct Cancelled;

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
