//! How things are shown: ages, sizes, tables, descriptions.

pub mod describe;
pub mod table;
pub mod view;

use jiff::Timestamp;

pub use crate::terminal::Paint;

/// How long ago something was, in two units at most as people say it: `45s`, `12m`, `3h5m`, `9d`.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second());
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{minutes}m"),
        7_200..86_400 => match minutes % 60 {
            0 => format!("{hours}h"),
            rest => format!("{hours}h{rest}m"),
        },
        86_400..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// A size given in KiB, in the largest unit that leaves a number of at least one.
pub fn size_kib(kib: u64) -> String {
    match kib {
        0..1_024 => format!("{kib}Ki"),
        1_024..1_048_576 => format!("{}Mi", kib / 1_024),
        _ => format!("{}.{}Gi", kib / 1_048_576, kib % 1_048_576 * 10 / 1_048_576),
    }
}

/// The first line of a text.
pub fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Text for a terminal: control characters, which could move the cursor or worse, are shown as what they are.
pub fn harmless(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() && c != '\t' {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (seconds, shown) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (11_100, "3h5m"),
            (90_000, "25h"),
            (172_800, "2d"),
            (900_000, "10d"),
        ] {
            assert_eq!(
                age(Timestamp::from_second(1_000_000 - seconds).unwrap(), now),
                shown
            );
        }
    }

    #[test]
    fn sizes_are_short() {
        for (kib, shown) in [
            (0, "0Ki"),
            (1023, "1023Ki"),
            (1024, "1Mi"),
            (1_048_575, "1023Mi"),
            (1_048_576, "1.0Gi"),
            (2_000_000, "1.9Gi"),
        ] {
            assert_eq!(size_kib(kib), shown);
        }
    }

    #[test]
    fn terminals_are_safe_from_logs() {
        assert_eq!(harmless("a\tb\x1b[2Jc\r"), "a\tb\\u{1b}[2Jc\\r");
    }
}
