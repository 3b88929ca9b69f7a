//! What the server answers: a status, headers and JSON, and the shapes of its refusals.

use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers beyond the content type.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
    /// `application/json` unless it is an object or a page.
    pub content_type: &'static str,
}

/// A refusal travels as an error up to the route.
pub type Outcome = Result<Answer, Box<Answer>>;

impl Answer {
    /// 200 with JSON.
    pub fn ok(value: &Value) -> Self {
        Self::json(200, value)
    }

    /// Any status with JSON.
    pub fn json(status: u16, value: &Value) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("horde-node", HeaderValue::from_static("local:1:5.1.5"));
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            headers,
            body: value.to_string().into_bytes(),
            content_type: "application/json",
        }
    }

    /// Bytes of an object.
    pub fn object(bytes: Vec<u8>) -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: bytes,
            content_type: "binary/octet-stream",
        }
    }

    /// A page of a gateway.
    pub fn html(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        let body = format!("<html><body><h1>{status}</h1></body></html>").into_bytes();
        Self {
            status,
            headers: HeaderMap::new(),
            body,
            content_type: "text/html",
        }
    }
}

/// A refusal with the server's stable code.
pub fn refuse(status: u16, rc: &str, message: &str) -> Box<Answer> {
    Box::new(Answer::json(status, &json!({ "message": message, "rc": rc })))
}

/// A refusal of the schema: no code, one text per field.
pub fn invalid(field: &str, why: &str) -> Box<Answer> {
    Box::new(Answer::json(
        400,
        &json!({ "errors": { field: why }, "message": "Input payload validation failed" }),
    ))
}
