//! Settings for tests from the environment.

/// Skips tests that need VMs, for a quick first run.
pub const SHORT_VARIABLE: &str = "FLEETBOX_SHORT";

/// Makes tests fail where VMs cannot run. Without it they are skipped.
pub const REQUIRE_VARIABLE: &str = "FLEETBOX_REQUIRE";

/// Keeps the VMs of a failed test.
pub const KEEP_VARIABLE: &str = "FLEETBOX_KEEP";

/// True if tests must fail where they cannot run.
#[cfg(test)]
pub(crate) fn is_required() -> bool {
    Settings::read(|name| std::env::var(name).ok()).require
}

/// The settings, and whether VMs can run here.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) short: bool,
    pub(super) require: bool,
    pub(super) keep: bool,
    /// Why this host cannot run VMs, if it cannot.
    pub(super) unavailable: Option<String>,
}

impl Settings {
    pub(super) fn from_env() -> Self {
        let variable =
            |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into());
        Self {
            unavailable: crate::host::preflight::unavailable(),
            ..Self::read(variable)
        }
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let is_set = |name| {
            variable(name).is_some_and(|value| {
                !matches!(
                    value.trim().to_ascii_lowercase().as_str(),
                    "" | "0" | "false"
                )
            })
        };
        Self {
            short: is_set(SHORT_VARIABLE),
            require: is_set(REQUIRE_VARIABLE),
            keep: is_set(KEEP_VARIABLE),
            unavailable: None,
        }
    }

    /// Decides whether a test runs: `None` if it does, or the reason to skip it. The error is the
    /// reason why it fails instead.
    pub(super) fn skip(&self, needs_host: bool) -> Result<Option<String>, String> {
        if self.short {
            return Ok(Some(format!("{SHORT_VARIABLE} is set")));
        }
        match self.unavailable.as_ref().filter(|_| needs_host) {
            Some(reason) if self.require => Err(format!(
                "{REQUIRE_VARIABLE} is set, and VMs cannot run here: {reason}"
            )),
            other => Ok(other.cloned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &'static str, value: &'static str) -> Settings {
        Settings::read(|asked| (asked == name).then(|| value.to_owned()))
    }

    #[test]
    fn variables_are_switches() {
        for on in ["1", "yes", "true"] {
            assert!(read(SHORT_VARIABLE, on).short, "{on}");
            assert!(read(REQUIRE_VARIABLE, on).require, "{on}");
            assert!(read(KEEP_VARIABLE, on).keep, "{on}");
        }
        for off in ["", "0", " ", "false", "FALSE"] {
            assert!(!read(SHORT_VARIABLE, off).short, "{off:?}");
        }
        let none = read("OTHER", "1");
        assert!(!none.short && !none.require && !none.keep);
    }

    #[test]
    fn tests_are_skipped_or_fail_with_the_reason() {
        let here = Settings::default();
        assert_eq!(here.skip(true), Ok(None));
        let elsewhere = Settings {
            unavailable: Some("no /dev/kvm".to_owned()),
            ..Settings::default()
        };
        assert_eq!(elsewhere.skip(true), Ok(Some("no /dev/kvm".to_owned())));
        assert_eq!(elsewhere.skip(false), Ok(None));
        let required = Settings {
            require: true,
            ..elsewhere.clone()
        };
        let error = required.skip(true).unwrap_err();
        assert!(
            error.contains("FLEETBOX_REQUIRE") && error.contains("no /dev/kvm"),
            "{error}"
        );
        let short = Settings {
            short: true,
            ..required
        };
        assert_eq!(
            short.skip(true),
            Ok(Some("FLEETBOX_SHORT is set".to_owned())),
            "who asks for a short run gets one"
        );
    }
}
