//! The resource use of a guest, from its `/proc`.

use std::time::Duration;

use serde::Serialize;

use crate::error::Result;
use crate::vm::Vm;

/// Time between the two samples for a rate.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints a sample of the counters, beginning with its time.
const SAMPLE: &str = "echo \"=time $(cut -d' ' -f1 /proc/uptime)\"; grep '^cpu' /proc/stat; \
    grep -E '^(MemTotal|MemAvailable):' /proc/meminfo; \
    sed 's/:/ /;s/^ */net /' /proc/net/dev; \
    sed 's/^/disk /' /proc/diskstats; \
    df -kP / | sed 's/^/df /'";

/// The resource use of a guest, as reported by the guest. A broken guest can report anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Share of the vCPUs' time spent working, from 0 to 1.
    pub cpu: f64,
    /// Number of vCPUs that the guest uses.
    pub cpus: u32,
    /// Bytes of memory in use: what is not available without swapping.
    pub memory_used: u64,
    /// Bytes of memory that the guest's kernel manages.
    pub memory_total: u64,
    /// Bytes used on the root file system.
    pub disk_used: u64,
    /// Size of the root file system in bytes.
    pub disk_total: u64,
    /// Bytes per second read from disks.
    pub disk_read: u64,
    /// Bytes per second written to disks.
    pub disk_written: u64,
    /// Bytes per second received from the network.
    pub net_received: u64,
    /// Bytes per second sent to the network.
    pub net_sent: u64,
}

/// Measures the guest's resource use over one second.
///
/// # Errors
/// [`Error::Ssh`](crate::Error::Ssh) and [`Error::Process`](crate::Error::Process) if the guest
/// cannot be reached; [`Error::Guest`](crate::Error::Guest) if the guest cannot report it.
///
/// ```no_run
/// # async fn example(vm: &fleetbox::Vm) -> fleetbox::Result<()> {
/// let stats = fleetbox::guest::stats(vm).await?;
/// println!("{:.0} % of {} vCPUs", stats.cpu * 100.0, stats.cpus);
/// # Ok(())
/// # }
/// ```
pub async fn stats(vm: &Vm) -> Result<Stats> {
    let script = format!("{SAMPLE}; sleep {}; {SAMPLE}; exit 0", INTERVAL.as_secs());
    Ok(parse(
        &super::run_script(vm, "report its resource use", &script).await?,
    ))
}

/// The counters of one sample.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    time: f64,
    busy: u64,
    idle: u64,
    cpus: u32,
    memory_total: u64,
    memory_available: u64,
    received: u64,
    sent: u64,
    read: u64,
    written: u64,
    disk_total: u64,
    disk_used: u64,
}

fn parse(text: &str) -> Stats {
    let mut samples = [Sample::default(); 2];
    let mut count = 0;
    for line in text.lines() {
        if let Some(time) = line.strip_prefix("=time ") {
            count += 1;
            if let Some(sample) = samples.get_mut(count - 1) {
                sample.time = time.trim().parse().unwrap_or(0.0);
            }
            continue;
        }
        if let Some(sample) = samples.get_mut(usize::max(count, 1) - 1) {
            sample.line(line);
        }
    }
    let [first, second] = samples;
    let seconds = second.time - first.time;
    let seconds = if seconds.is_finite() && seconds > 0.0 {
        seconds
    } else {
        INTERVAL.as_secs_f64()
    };
    let rate = |from: u64, to: u64| (to.saturating_sub(from) as f64 / seconds) as u64;
    let busy = second.busy.saturating_sub(first.busy);
    let all = busy.saturating_add(second.idle.saturating_sub(first.idle));
    Stats {
        cpu: if all == 0 {
            0.0
        } else {
            busy as f64 / all as f64
        },
        cpus: second.cpus,
        memory_used: second.memory_total.saturating_sub(second.memory_available),
        memory_total: second.memory_total,
        disk_used: second.disk_used,
        disk_total: second.disk_total,
        disk_read: rate(first.read, second.read),
        disk_written: rate(first.written, second.written),
        net_received: rate(first.received, second.received),
        net_sent: rate(first.sent, second.sent),
    }
}

impl Sample {
    fn line(&mut self, line: &str) {
        let words: Vec<_> = line.split_ascii_whitespace().take(24).collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        let kib = |at: usize| number(at).unwrap_or(0).saturating_mul(1 << 10);
        let sectors = |at: usize| number(at).unwrap_or(0).saturating_mul(512);
        match words.first() {
            // proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal.
            Some(&"cpu") => {
                let idle = [4, 5].map(|at| number(at).unwrap_or(0));
                let busy = [1, 2, 3, 6, 7, 8].map(|at| number(at).unwrap_or(0));
                self.idle = idle.into_iter().fold(0, u64::saturating_add);
                self.busy = busy.into_iter().fold(0, u64::saturating_add);
            }
            Some(word) if word.starts_with("cpu") => self.cpus = self.cpus.saturating_add(1),
            Some(&"MemTotal:") => self.memory_total = kib(1),
            Some(&"MemAvailable:") => self.memory_available = kib(1),
            // The interface, eight counters of received data, then those of sent data.
            Some(&"net") if words.get(1) != Some(&"lo") => {
                self.received = self.received.saturating_add(number(2).unwrap_or(0));
                self.sent = self.sent.saturating_add(number(10).unwrap_or(0));
            }
            // Documentation/admin-guide/iostats.rst: whole virtio disks are `vda`, `vdb` and so on.
            Some(&"disk") if words.get(3).is_some_and(|name| is_whole_disk(name)) => {
                self.read = self.read.saturating_add(sectors(6));
                self.written = self.written.saturating_add(sectors(10));
            }
            Some(&"df") if number(2).is_some() => {
                self.disk_total = kib(2);
                self.disk_used = kib(3);
            }
            _ => {}
        }
    }
}

fn is_whole_disk(name: &str) -> bool {
    name.strip_prefix("vd")
        .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(time: &str, busy: u64, idle: u64, bytes: u64) -> String {
        format!(
            "=time {time}\ncpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\ncpu1 1 2 3 4\n\
             MemTotal:  1000 kB\nMemAvailable: 600 kB\n\
             net Inter-| Receive\nnet lo 9999 1 0 0 0 0 0 0 9999 1 0 0 0 0 0 0\n\
             net eth0 {bytes} 1 0 0 0 0 0 0 {bytes} 1 0 0 0 0 0 0\n\
             disk  254 0 vda 1 2 {bytes} 4 5 6 0 8 9 10 11\n\
             disk  254 1 vda1 1 2 99999 4 5 6 99999 8 9 10 11\n\
             df Filesystem 1024-blocks Used Available Capacity Mounted on\n\
             df /dev/vda1 2000 500 1500 25% /\n"
        )
    }

    #[test]
    fn rates_are_between_two_samples() {
        let stats = parse(&(sample("10.00", 100, 900, 1000) + &sample("12.00", 150, 950, 3000)));
        assert_eq!(
            stats,
            Stats {
                cpu: 0.5,
                cpus: 2,
                memory_used: 400 << 10,
                memory_total: 1000 << 10,
                disk_used: 500 << 10,
                disk_total: 2000 << 10,
                disk_read: 2000 * 512 / 2,
                disk_written: 0,
                net_received: 1000,
                net_sent: 1000,
            }
        );
    }

    #[test]
    fn nonsense_is_no_panic() {
        for text in [
            "",
            "cpu",
            "=time x\n=time -1\n=time 3\ncpu 1",
            "=time NaN\ncpu 99999999999999999999 1\n=time inf\ndf x 1",
            "=time 1\nMemTotal: 18446744073709551615 kB\nnet x 1",
        ] {
            let stats = parse(text);
            assert!(stats.cpu.is_finite() && (0.0..=1.0).contains(&stats.cpu));
        }
    }

    #[test]
    fn this_host_is_understood_too() {
        let output = std::process::Command::new("sh")
            .args(["-c", SAMPLE])
            .output()
            .unwrap();
        let stats = parse(&String::from_utf8_lossy(&output.stdout));
        // Other fields are those of the second sample.
        assert_eq!(stats.memory_total, 0);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let stats = parse(&(text.clone() + &text));
        assert!(
            stats.cpus > 0 && stats.memory_total > 1 << 20 && stats.disk_total > 0,
            "{stats:?}"
        );
    }
}
