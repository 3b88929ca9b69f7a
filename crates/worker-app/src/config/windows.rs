//! Times of day in which the owner wants the machine for themself.

use std::fmt;
use std::str::FromStr;

/// A daily window in local time, `HH:MM-HH:MM`; one that ends before it starts goes over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Minutes after midnight at which it starts, 0..1440.
    start_minute: u16,
    /// Minutes after midnight at which it ends, 0..1440, exclusive.
    end_minute: u16,
}

impl Window {
    /// Whether `minute` (after midnight, 0..1440) lies inside.
    pub fn contains(self, minute: u16) -> bool {
        if self.start_minute <= self.end_minute {
            (self.start_minute..self.end_minute).contains(&minute)
        } else {
            minute >= self.start_minute || minute < self.end_minute
        }
    }

    /// The window of `windows` that is open now, local time.
    pub fn open_now(windows: &[Self]) -> Option<Self> {
        if windows.is_empty() {
            return None;
        }
        let now = jiff::ZonedDateTime::now().time();
        let minute = u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs());
        windows.iter().copied().find(|window| window.contains(minute))
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a window of the form `HH:MM-HH:MM`");
        let (start, end) = text.split_once('-').ok_or_else(wrong)?;
        let minute = |clock: &str| -> Option<u16> {
            let (hours, minutes) = clock.trim().split_once(':')?;
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
        };
        let (start_minute, end_minute) = (minute(start).ok_or_else(wrong)?, minute(end).ok_or_else(wrong)?);
        if start_minute == end_minute {
            return Err(format!("the window `{text}` starts and ends at the same minute"));
        }
        Ok(Self {
            start_minute,
            end_minute,
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            self.start_minute / 60,
            self.start_minute % 60,
            self.end_minute / 60,
            self.end_minute % 60
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_over_midnight_holds_both_sides() {
        let night: Window = "22:30-06:00".parse().unwrap();
        assert!(night.contains(23 * 60) && night.contains(0) && night.contains(359));
        assert!(!night.contains(360) && !night.contains(22 * 60 + 29));
        assert_eq!(night.to_string(), "22:30-06:00");
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "18-19",
            "24:00-01:00",
            "18:00-18:00",
            "18:60-19:00",
            "-1:00-02:00",
            "18:00",
            "a:b-c:d",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }
}
