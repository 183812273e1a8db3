use super::*;

const LINE: &str = "Kernel panic - not syncing: sysrq triggered crash";

const STOPPED: Look = Look {
    complete: true,
    runs: false,
};
const RUNS: Look = Look {
    complete: true,
    runs: true,
};

/// A guest, and a clock that only [`Guest::until`] advances.
struct Guest {
    watch: PanicWatch,
    view: ConsoleView,
    start: Instant,
    now: Instant,
    look: Look,
}

impl Guest {
    fn new(cmdline: &str) -> Self {
        let start = Instant::now();
        Self {
            watch: PanicWatch::new(cmdline),
            view: ConsoleView {
                text: None,
                last_output: start,
            },
            start,
            now: start,
            look: STOPPED,
        }
    }

    fn print_panic(&mut self) {
        self.view.text = Some(PanicText {
            line: LINE.into(),
            at: self.now,
            complete: false,
            reset_in: None,
        });
        self.view.last_output = self.now;
    }

    fn text(&mut self) -> &mut PanicText {
        self.view.text.as_mut().unwrap()
    }

    fn report(&mut self, crash_kernel: bool) -> String {
        self.watch.report(&self.view, crash_kernel, self.now)
    }

    /// Checks until there is a verdict, or for `limit` seconds. The console prints as long as `prints` says.
    fn until(&mut self, limit: u64, prints: impl Fn(Duration) -> bool) -> Option<Verdict> {
        let end = self.now + Duration::from_secs(limit);
        while self.now < end {
            if prints(self.now - self.start) {
                self.view.last_output = self.now;
            }
            let look = self.look;
            match self.watch.check(&self.view, self.now, || look) {
                Verdict::CheckIn(time) => {
                    assert!(!time.is_zero());
                    self.now += time;
                }
                verdict => return Some(verdict),
            }
        }
        None
    }

    fn seconds(&self) -> f64 {
        (self.now - self.start).as_secs_f64()
    }
}

fn never(_: Duration) -> bool {
    false
}

fn stopped() -> Option<Verdict> {
    Some(Verdict::Stopped(LINE.into()))
}

#[test]
fn a_guest_without_a_panic_is_left_alone() {
    assert_eq!(Guest::new("").until(1, never), Some(Verdict::Calm));
}

#[test]
fn a_line_of_a_guest_that_goes_on_is_forgotten() {
    let mut guest = Guest::new("");
    guest.print_panic();
    guest.look = RUNS;
    assert_eq!(guest.until(60, never), Some(Verdict::Forget));
    // And one that goes on printing is not even looked at.
    let mut guest = Guest::new("");
    guest.print_panic();
    assert_eq!(guest.until(600, |_| true), None);
}

#[test]
fn a_line_of_a_guest_that_has_stopped_ends_it() {
    let mut guest = Guest::new("");
    guest.print_panic();
    assert_eq!(guest.until(60, never), stopped());
    assert!(
        (10.0..10.5).contains(&guest.seconds()),
        "{}",
        guest.seconds()
    );
    let mut guest = Guest::new("");
    guest.print_panic();
    guest.text().complete = true;
    assert_eq!(guest.until(60, never), stopped());
    assert!((6.0..6.5).contains(&guest.seconds()), "{}", guest.seconds());
}

#[test]
fn a_guest_that_cannot_be_looked_at_is_not_ended_for_a_line() {
    let mut guest = Guest::new("");
    guest.print_panic();
    guest.look.complete = false;
    assert_eq!(guest.until(600, never), None);
}

#[test]
fn a_reported_panic_ends_once_the_trace_is_complete() {
    let mut guest = Guest::new("");
    guest.print_panic();
    assert_eq!(guest.report(false), LINE);
    assert_eq!(
        guest.until(600, |at| at < Duration::from_secs(20)),
        stopped()
    );
    assert!(
        (22.0..23.5).contains(&guest.seconds()),
        "{}",
        guest.seconds()
    );
}

#[test]
fn a_reported_panic_ends_after_a_minute_of_printing() {
    let mut guest = Guest::new("");
    guest.report(false);
    assert_eq!(
        guest.until(600, |_| true),
        Some(Verdict::Stopped(
            "the guest's kernel has reported a panic".into()
        ))
    );
    assert!(
        (60.0..61.0).contains(&guest.seconds()),
        "{}",
        guest.seconds()
    );
}

#[test]
fn a_guest_that_will_reset_itself_is_waited_for() {
    for (cmdline, said, want) in [
        ("root=/dev/vda1 panic=30", None, 37.5),
        ("panic=30 panic=10", None, 17.5),
        ("panic=-1", None, 2.5),
        ("panic=0", None, 2.5),
        ("panic=30", Some(7), 14.5),
        ("", Some(u32::MAX), 607.5),
    ] {
        let mut guest = Guest::new(cmdline);
        guest.print_panic();
        guest.text().reset_in = said;
        guest.report(false);
        assert_eq!(guest.until(1000, never), stopped(), "{cmdline}");
        let took = guest.seconds();
        assert!((want..want + 0.5).contains(&took), "{cmdline}: {took}");
    }
}

#[test]
fn a_crash_kernel_has_half_an_hour() {
    let mut guest = Guest::new("");
    guest.print_panic();
    assert_eq!(guest.report(true), LINE);
    assert_eq!(guest.until(1799, never), None);
    let Some(Verdict::Stopped(what)) = guest.until(10, never) else {
        panic!("it goes on");
    };
    assert!(what.starts_with(LINE), "{what}");
    assert!(what.contains("crash kernel"), "{what}");
}

#[test]
fn a_crash_kernel_that_was_not_announced_is_recognised_by_running() {
    let mut guest = Guest::new("");
    guest.print_panic();
    guest.report(false);
    guest.look = RUNS;
    assert_eq!(guest.until(60, never), Some(Verdict::Forget));
    guest.view.text = None;
    assert_eq!(guest.until(1700, never), None);
}

#[test]
fn the_panic_of_a_crash_kernel_ends_the_machine() {
    let mut guest = Guest::new("");
    guest.print_panic();
    guest.report(true);
    assert_eq!(guest.until(30, never), None);
    guest.print_panic();
    let before = guest.seconds();
    assert_eq!(guest.until(60, never), stopped());
    assert!(guest.seconds() < before + 11.0);
}
