//! Reading what a server may send: `null` for absent, numbers as text, values of the wrong type, enums that grew.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// `null` and a missing key are both the default; a value of the wrong type is an error.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A value that can be done without: the wrong type reads as absent.
pub fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).ok())
}

/// A list of which entries of the wrong type are left out; anything but a list is empty.
pub fn lenient_list<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Array(entries) => Ok(entries
            .into_iter()
            .filter_map(|entry| serde_json::from_value(entry).ok())
            .collect()),
        _ => Ok(Vec::new()),
    }
}

/// A whole number, also written as a fraction without remainder (`30.0`) or as digits in text; anything else, or one out
/// of the type's range, reads as absent.
pub fn whole<'de, D: Deserializer<'de>, T: TryFrom<i64>>(deserializer: D) -> Result<Option<T>, D::Error> {
    /// Largest whole number up to which every one has an exact `f64`.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let of_fraction = |number: f64| (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64);
    let number = match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(of_fraction)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    Ok(number.and_then(|number| T::try_from(number).ok()))
}

/// As [`whole`], but a number out of `u32`'s range reads as the end of it that is nearer: what is asked for beyond all
/// measure is for its reader to clamp, not to forget.
pub fn nearest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let number = match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_i64().map_or(number.as_f64(), |exact| Some(exact as f64)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    // Every `u32` is exact as an `f64`, and so is the larger range's remainder of zero.
    let number = number.filter(|number: &f64| number.is_finite() && number.fract() == 0.0);
    Ok(number.map(|number| number.clamp(0.0, f64::from(u32::MAX)) as u32))
}

/// A finite number, also in text; anything else reads as absent.
pub fn real<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let number = match Value::deserialize(deserializer)? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    Ok(number.filter(|number: &f64| number.is_finite()))
}

/// A seed: digits in text, or a number; at most `u64::MAX`.
pub fn seed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => text.trim().parse().ok(),
        Value::Number(number) => number.as_u64(),
        _ => None,
    })
}

/// Declares an enum of wire words that keeps words it does not know.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
            /// A word this version does not know.
            Other(String),
        }

        impl $name {
            /// Every word this version knows.
            pub const KNOWN: &'static [$name] = &[$($name::$variant),*];

            /// The word on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $($name::$variant => $word,)*
                    $name::Other(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => $name::$variant,)*
                    other => $name::Other(other.to_owned()),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self::from(String::deserialize(deserializer)?.as_str()))
            }
        }
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn f017_numbers_are_read_in_every_honest_spelling_and_no_other() {
        let steps = |value: Value| whole::<_, u32>(value).expect("never an error");
        for value in [json!(30), json!(30.0), json!("30"), json!(" 30 ")] {
            assert_eq!(steps(value.clone()), Some(30), "{value}");
        }
        for value in [
            json!(30.5),
            json!(-1),
            json!(4_294_967_296_u64),
            json!(u64::MAX),
            json!(1e300),
            json!("NaN"),
            json!(""),
            json!(null),
            json!(true),
            json!([30]),
        ] {
            assert_eq!(steps(value.clone()), None, "{value}");
        }
        let clamped = |value: Value| nearest(value).expect("never an error");
        for (value, expected) in [
            (json!(30), Some(30)),
            (json!("30"), Some(30)),
            (json!(-1), Some(0)),
            (json!(i64::MIN), Some(0)),
            (json!(u64::MAX), Some(u32::MAX)),
            (json!(4_294_967_296_u64), Some(u32::MAX)),
            (json!(1e300), Some(u32::MAX)),
            (json!("-5"), Some(0)),
            (json!(30.5), None),
            (json!("NaN"), None),
            (json!("inf"), None),
            (json!(null), None),
            (json!([30]), None),
        ] {
            assert_eq!(clamped(value.clone()), expected, "{value}");
        }
        let scale = |value: Value| real(value).expect("never an error");
        assert_eq!((scale(json!(7)), scale(json!("7.5"))), (Some(7.0), Some(7.5)));
        for value in [json!("NaN"), json!("inf"), json!("1e400"), json!(null), json!({})] {
            assert_eq!(scale(value.clone()), None, "{value}");
        }
    }
}
