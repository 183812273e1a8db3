//! The values of numbers. Integers keep all their digits.

/// Maximum digits of an integer. Python reads no more.
const DIGITS: usize = 4300;
/// Decimal digits in one part of [`Decimal`].
const PART: u32 = 1_000_000_000;

/// An integer of any size.
#[derive(Default)]
struct Decimal(Vec<u32>);

impl Decimal {
    /// Multiplies by `base` and adds `digit`.
    fn push(&mut self, base: u32, digit: u32) {
        let mut carry = u64::from(digit);
        for part in &mut self.0 {
            carry += u64::from(*part) * u64::from(base);
            // The remainder is below PART.
            *part = (carry % u64::from(PART)) as u32;
            carry /= u64::from(PART);
        }
        if carry > 0 {
            // The carry is at most the base.
            self.0.push(carry as u32);
        }
    }

    fn push_digits(&mut self, base: u32, digits: &str) -> Option<()> {
        for c in digits.chars() {
            self.push(base, c.to_digit(base)?);
        }
        Some(())
    }

    fn text(&self) -> String {
        let mut parts = self.0.iter().rev();
        let first = parts.next().map_or("0".to_owned(), u32::to_string);
        parts.fold(first, |text, part| format!("{text}{part:09}"))
    }
}

/// The decimal digits of an integer in one of YAML's forms.
///
/// # Errors
/// It has no digits, or too many.
pub(super) fn int(text: &str) -> Result<String, &'static str> {
    let clean = text.replace('_', "");
    let (negative, digits) = match clean.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, clean.strip_prefix('+').unwrap_or(&clean)),
    };
    if digits.len() > DIGITS {
        return Err("a number of more than 4300 digits");
    }
    let mut value = Decimal::default();
    let read = if let Some(rest) = digits.strip_prefix("0b") {
        value.push_digits(2, rest).filter(|()| !rest.is_empty())
    } else if let Some(rest) = digits.strip_prefix("0x") {
        value.push_digits(16, rest).filter(|()| !rest.is_empty())
    } else if digits.starts_with('0') {
        value.push_digits(8, digits)
    } else {
        sexagesimal(&mut value, digits)
    };
    read.ok_or("this looks like a number and has no digits; put it in quotes")?;
    let text = value.text();
    Ok(if negative && text != "0" {
        format!("-{text}")
    } else {
        text
    })
}

/// A decimal number, or several of which each counts 60 times as much as the next: `12:30:45`.
fn sexagesimal(value: &mut Decimal, text: &str) -> Option<()> {
    let mut parts = text.split(':');
    value.push_digits(10, parts.next()?)?;
    for part in parts {
        value.push(60, part.parse().ok()?);
    }
    Some(())
}

/// A float in the shortest form that PyYAML reads as the same one.
///
/// # Errors
/// The text is not a float.
pub(super) fn float(text: &str) -> Result<String, &'static str> {
    let clean = text.replace('_', "").to_ascii_lowercase();
    let (sign, rest) = match clean.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, clean.strip_prefix('+').unwrap_or(&clean)),
    };
    let value = match rest {
        ".inf" => f64::INFINITY,
        ".nan" => f64::NAN,
        _ if rest.contains(':') => {
            let mut value = 0.0;
            let mut base: f64 = 1.0;
            for part in rest.rsplit(':') {
                value += plain_float(part)? * base;
                base *= 60.0;
            }
            value
        }
        _ => plain_float(rest)?,
    };
    Ok(float_text(sign * value))
}

fn plain_float(text: &str) -> Result<f64, &'static str> {
    let float = text.parse();
    float.map_err(|_| "this is not a number")
}

/// The text of a float.
pub(super) fn float_text(value: f64) -> String {
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let text = format!("{value:?}");
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    // YAML 1.1 wants a point and a sign.
    let point = if digits.contains('.') { "" } else { ".0" };
    let plus = if exponent.starts_with('-') { "" } else { "+" };
    format!("{digits}{point}e{plus}{exponent}")
}
