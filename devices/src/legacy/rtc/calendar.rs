//! Dates of the proleptic Gregorian calendar, and daily alarms.

const DAY: i64 = 86_400;

/// A date and time of day in UTC, as a clock's registers hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DateTime {
    pub(super) year: i64,
    /// From 1.
    pub(super) month: u8,
    /// From 1.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
}

/// Days from 1970-01-01 to the first of March of `year`. If years begin in March, their leap day is
/// at the end.
fn days_to_march(year: i64) -> i64 {
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) - 719_468
}

/// Days from the first of March to the first of the month `since_march` months later.
fn days_to_month(since_march: i64) -> i64 {
    (153 * since_march + 2) / 5
}

impl DateTime {
    /// The date and time at `second` seconds after 1970-01-01 00:00 UTC.
    pub(super) fn from_unix(second: i64) -> Self {
        let (days, of_day) = (second.div_euclid(DAY), second.rem_euclid(DAY));
        // 146097 days are 400 years; the estimate is at most one year too late.
        let mut year = (days + 719_468).div_euclid(146_097) * 400
            + (days + 719_468).rem_euclid(146_097) * 400 / 146_097;
        if days_to_march(year) > days {
            year -= 1;
        } else if days_to_march(year + 1) <= days {
            year += 1;
        }
        let of_year = days - days_to_march(year);
        let since_march = (5 * of_year + 2) / 153;
        let month = (since_march + 2) % 12 + 1;
        Self {
            year: year + i64::from(month <= 2),
            month: month as u8,
            day: (of_year - days_to_month(since_march) + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
            // 1970-01-01 was a Thursday.
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
        }
    }

    /// Seconds since 1970-01-01 00:00 UTC. The day of the week is ignored. A value beyond its
    /// unit's range carries into the next unit.
    pub(super) fn to_unix(self) -> i64 {
        let months = self.year * 12 + i64::from(self.month) - 3;
        let (year, since_march) = (months.div_euclid(12), months.rem_euclid(12));
        let days = days_to_march(year) + days_to_month(since_march) + i64::from(self.day) - 1;
        days * DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }
}

/// The first second after `after` whose time of day matches the given hour, minute and second;
/// `None` matches any value. Returns `None` if a value is out of range.
pub(super) fn next_match(
    after: i64,
    hour: Option<i64>,
    minute: Option<i64>,
    second: Option<i64>,
) -> Option<i64> {
    let choices = |field: Option<i64>, end: i64| match field {
        Some(value) => value..(value + 1).min(end),
        None => 0..end,
    };
    let midnight = after.checked_sub(after.rem_euclid(DAY))?;
    // Tomorrow's first match is the answer when today's are over. Whole hours and minutes that are
    // over are skipped, so this takes some hundred steps at most.
    for day in [midnight, midnight.checked_add(DAY)?] {
        for hour in choices(hour, 24).map(|h| day.saturating_add(h * 3600)) {
            if hour.saturating_add(3599) <= after {
                continue;
            }
            for minute in choices(minute, 60).map(|m| hour.saturating_add(m * 60)) {
                if minute.saturating_add(59) <= after {
                    continue;
                }
                let mut seconds = choices(second, 60).map(|s| minute.saturating_add(s));
                if let Some(found) = seconds.find(|s| *s > after) {
                    return Some(found);
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        for (unix, date, weekday) in [
            (0, (1970, 1, 1, 0, 0, 0), 5),
            (951_782_399, (2000, 2, 28, 23, 59, 59), 2),
            (951_782_400, (2000, 2, 29, 0, 0, 0), 3),
            (951_868_800, (2000, 3, 1, 0, 0, 0), 4),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0), 2),
            (4_107_542_399, (2100, 2, 28, 23, 59, 59), 1),
            (1_798_761_600, (2027, 1, 1, 0, 0, 0), 6),
            (-1, (1969, 12, 31, 23, 59, 59), 4),
        ] {
            let t = DateTime::from_unix(unix);
            let got = (t.year, t.month, t.day, t.hour, t.minute, t.second);
            assert_eq!((got, t.weekday), (date, weekday), "{unix}");
            assert_eq!(t.to_unix(), unix);
        }
    }

    #[test]
    fn alarms() {
        let noon = 1_000_000_000 / DAY * DAY + 12 * 3600;
        for (hour, minute, second, want) in [
            (Some(12), Some(0), Some(1), Some(noon + 1)),
            (Some(12), Some(0), Some(0), Some(noon + DAY)),
            (Some(11), None, None, Some(noon + DAY - 3600)),
            (None, None, None, Some(noon + 1)),
            (None, None, Some(0), Some(noon + 60)),
            (None, Some(0), Some(0), Some(noon + 3600)),
            (Some(24), None, None, None),
            (None, None, Some(165), None),
        ] {
            assert_eq!(next_match(noon, hour, minute, second), want);
        }
        assert_eq!(next_match(i64::MAX, None, None, None), None);
    }

    proptest! {
        #[test]
        fn dates_round_trip(unix in -100_000_000_000i64..1_000_000_000_000) {
            let t = DateTime::from_unix(unix);
            prop_assert_eq!(t.to_unix(), unix);
            prop_assert!((1..=12).contains(&t.month) && (1..=31).contains(&t.day));
            let next = DateTime::from_unix(unix + DAY);
            prop_assert_eq!(next.weekday, t.weekday % 7 + 1);
        }

        #[test]
        fn the_next_match_is_the_first(
            after in 0i64..10_000_000,
            hour in prop::option::of(0i64..24),
            minute in prop::option::of(0i64..60),
            second in prop::option::of(0i64..60),
        ) {
            let fits = |at: i64| {
                hour.is_none_or(|h| at / 3600 % 24 == h)
                    && minute.is_none_or(|m| at / 60 % 60 == m)
                    && second.is_none_or(|s| at % 60 == s)
            };
            let want = (after + 1..=after + DAY).find(|at| fits(*at));
            prop_assert_eq!(next_match(after, hour, minute, second), want);
        }
    }
}
