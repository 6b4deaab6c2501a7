//! Sizes and durations as users write them: `10Gi`, `30d`. Parses and prints; the errors say what to write instead.

use jiff::SignedDuration;

/// A size or duration that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a Kubernetes quantity.
    #[error("\"{0}\" is not a size; expected a number with an optional unit: 500Mi, 10Gi, 1.5Ti, 10G")]
    Bytes(String),
    /// Not a duration.
    #[error("\"{0}\" is not a duration; expected numbers with units s, m, h, d or w: 30s, 12h, 30d, 1h30m")]
    Duration(String),
    /// Not what `MAX_RATE` of PostgreSQL takes.
    #[error("\"{0}\" is not a rate from 32Ki to 1Gi; expected bytes per second: 512Ki, 100Mi, 1Gi")]
    Rate(String),
    /// Too large to count.
    #[error("\"{0}\" is too large")]
    TooLarge(String),
}

/// Bytes of a Kubernetes quantity: `10Gi`, `500M`, `1.5Ti`, `1e9`, `1024`. A fraction of a byte is rounded up.
///
/// # Errors
/// [`QuantityError::Bytes`] or [`QuantityError::TooLarge`].
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Bytes(shorten(text));
    let too_large = || QuantityError::TooLarge(shorten(text));
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, unit) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(malformed());
    }
    let (times, divided_by) = parse_unit(unit).ok_or_else(malformed)?;
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).map_err(|_| too_large())?).ok_or_else(too_large)?;
    let value: u128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| too_large())? };
    let bytes =
        value.checked_mul(times).ok_or_else(too_large)?.div_ceil(scale.checked_mul(divided_by).ok_or_else(too_large)?);
    u64::try_from(bytes).map_err(|_| too_large())
}

/// Bytes per second as a Kubernetes quantity; returns kilobytes per second, within what `MAX_RATE` of PostgreSQL takes.
///
/// # Errors
/// [`QuantityError::Rate`].
pub fn parse_rate(text: &str) -> Result<u32, QuantityError> {
    let kilobytes =
        parse_bytes(text).ok().filter(|bytes| (32 << 10..=1 << 30).contains(bytes)).map(|bytes| bytes >> 10);
    kilobytes.and_then(|rate| u32::try_from(rate).ok()).ok_or_else(|| QuantityError::Rate(shorten(text)))
}

/// A unit as (factor, divisor).
fn parse_unit(unit: &str) -> Option<(u128, u128)> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let decimal = ["k", "M", "G", "T", "P", "E"];
    let small = ["m", "u", "n"];
    let power =
        |units: &[&str]| units.iter().position(|known| *known == unit).and_then(|at| u32::try_from(at + 1).ok());
    if unit.is_empty() {
        return Some((1, 1));
    }
    if let Some(power) = power(&binary) {
        return Some((1024_u128.pow(power), 1));
    }
    if let Some(power) = power(&decimal) {
        return Some((1000_u128.pow(power), 1));
    }
    if let Some(power) = power(&small) {
        return Some((1, 1000_u128.pow(power)));
    }
    let exponent: i32 = unit.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

/// A duration: `30d`, `12h`, `10s`, `1h30m`, `500ms`. Never negative; a day is 24 hours.
///
/// # Errors
/// [`QuantityError::Duration`] or [`QuantityError::TooLarge`].
pub fn parse_duration(text: &str) -> Result<SignedDuration, QuantityError> {
    let malformed = || QuantityError::Duration(shorten(text));
    let too_large = || QuantityError::TooLarge(shorten(text));
    let mut rest = text;
    let mut total_ms: i64 = 0;
    if rest.is_empty() {
        return Err(malformed());
    }
    while !rest.is_empty() {
        let digits_end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let (digits, tail) = rest.split_at(digits_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_ms: i64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(malformed()),
        };
        if digits.is_empty() {
            return Err(malformed());
        }
        let count: i64 = digits.parse().map_err(|_| too_large())?;
        let ms = count.checked_mul(unit_ms).ok_or_else(too_large)?;
        total_ms = total_ms.checked_add(ms).ok_or_else(too_large)?;
        rest = tail;
    }
    Ok(SignedDuration::from_millis(total_ms))
}

/// Bytes for people: `0 B`, `48 KiB`, `1.5 GiB`.
#[must_use]
pub fn render_bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit_bytes: u128 = 1;
    let mut name = "B";
    for unit in units {
        if u128::from(bytes) < unit_bytes * 1024 {
            break;
        }
        unit_bytes *= 1024;
        name = unit;
    }
    let tenths = (u128::from(bytes) * 10 + unit_bytes / 2) / unit_bytes;
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {name}"),
        (whole, _) if whole >= 100 => format!("{whole} {name}"),
        (whole, tenth) => format!("{whole}.{tenth} {name}"),
    }
}

/// Enough of the text for an error.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("10Gi", 10 << 30),
            ("1.5Ki", 1536),
            ("10G", 10_000_000_000),
            ("1e3", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("1500m", 2),
            (".5Ki", 512),
            ("+1k", 1000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "Gi", "-1Gi", "10GB", "10 Gi", "1.2.3", "ten", ".", "1e"] {
            let error = parse_bytes(text).expect_err(text).to_string();
            assert!(error.contains("10Gi"), "{error}");
        }
        assert_eq!(parse_bytes("99Ei"), Err(QuantityError::TooLarge("99Ei".to_owned())));
    }

    #[test]
    fn rates_are_those_that_postgres_takes() {
        for (text, kilobytes) in [("32Ki", 32), ("32768", 32), ("100M", 97_656), ("100Mi", 102_400), ("1Gi", 1 << 20)] {
            assert_eq!(parse_rate(text), Ok(kilobytes), "{text}");
        }
        for text in ["", "fast", "0", "31Ki", "1025Mi", "99Ei", "-1Mi"] {
            assert_eq!(parse_rate(text), Err(QuantityError::Rate(text.to_owned())));
        }
    }

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, seconds) in
            [("30d", 2_592_000), ("12h", 43_200), ("10s", 10), ("1h30m", 5_400), ("1w", 604_800), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
        for text in ["", "30", "d", "-1d", "1y", "1.5h", "1 h", "h1"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_written_for_people() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (49_152, "48 KiB"), (1_610_612_736, "1.5 GiB"), (u64::MAX, "16 EiB")]
        {
            assert_eq!(render_bytes(bytes), text);
        }
    }
}
