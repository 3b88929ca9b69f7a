//! Changing answers of a server for a test.

use serde_json::Value;

/// Puts what `change` has into `into`, object by object. Unlike a merge patch (RFC 7396) a `null` is put in, too.
pub fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}
