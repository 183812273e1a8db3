//! How fast one connection is: `cargo test -p fleetbox-net --release tests::speed --
//! --ignored --nocapture`. The guest is smoltcp too and costs about as much as the gateway.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::guest::{Guest, HOST, PATIENCE, config, serve_many};
use crate::Network;

const TIME: Duration = Duration::from_secs(3);

/// CPU time of the network's thread so far, in user and kernel mode: unlike the rate, it does not
/// depend on what else the machine does. Clock ticks are a hundredth of a second on Linux.
fn cpu() -> [f64; 2] {
    let mut sum = [0.0; 2];
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        if let Some((_, rest)) = stat.split_once("(fleetbox-net)") {
            let fields: Vec<_> = rest.split_ascii_whitespace().collect();
            sum[0] += fields[11].parse::<f64>().unwrap() / 100.0;
            sum[1] += fields[12].parse::<f64>().unwrap() / 100.0;
        }
    }
    sum
}

fn show(what: &str, bytes: usize, time: Duration, before: [f64; 2]) {
    let rate = bytes as f64 / time.as_secs_f64();
    let after = cpu();
    let per_gigabyte = |index: usize| (after[index] - before[index]) / bytes as f64 * 1e9;
    println!(
        "{what}: {:.0} MB/s ({:.2} Gbit/s), gateway {:.2} s user + {:.2} s kernel per GB",
        rate / 1e6,
        rate * 8e-9,
        per_gigabyte(0),
        per_gigabyte(1),
    );
    // A hang or a retransmission at every turn would be far slower on any machine.
    assert!(rate > 5e6);
}

#[test]
#[ignore = "a measurement"]
fn one_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let network = Network::start(config()).unwrap();
    let mut guest = Guest::join(&network, "web", 1);

    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let end = Instant::now() + TIME;
        while Instant::now() < end {
            stream.write_all(&[7; 1 << 17]).unwrap();
        }
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 1 << 17];
        while stream.read(&mut buffer).unwrap() > 0 {}
    });

    let handle = guest.connect((HOST, port).into()).unwrap();
    let (start, before) = (Instant::now(), cpu());
    let mut bytes = 0;
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        while socket.can_recv() {
            bytes += socket.recv(|data| (data.len(), data.len())).unwrap();
        }
        (!socket.may_recv()).then_some(())
    });
    show("host to guest", bytes, start.elapsed(), before);

    let handle = guest.connect((HOST, port).into()).unwrap();
    let (start, before) = (Instant::now(), cpu());
    let mut bytes = 0;
    let data = vec![7; 1 << 17];
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        if socket.can_send() {
            bytes += socket.send_slice(&data).unwrap();
        }
        (start.elapsed() > TIME).then_some(())
    });
    guest.tcp(handle).close();
    guest.until(|_| host.is_finished().then_some(()));
    show("guest to host", bytes, start.elapsed(), before);
    println!("{:#?}", network.status().unwrap().ports);
}

/// What the gateway spends for the same bytes in ever more connections at once.
#[test]
#[ignore = "a measurement"]
fn many_connections() {
    const BYTES: usize = 64 << 20;
    for count in [10, 100, 300, 1000] {
        let len = BYTES / count;
        let (to, server) = serve_many(count, len);
        let network = Network::start(config()).unwrap();
        let mut guest = Guest::join(&network, "web", 1);
        let handles: Vec<_> = (0..count)
            .map(|_| guest.start_connect(to, 16 << 10))
            .collect();
        guest.until(|guest| {
            let all = handles.iter().all(|handle| guest.tcp(*handle).may_send());
            all.then_some(())
        });
        for handle in &handles {
            guest.tcp(*handle).send_slice(&[1; 4]).unwrap();
        }
        let (start, before) = (Instant::now(), cpu());
        let mut missing = vec![len; count];
        guest.until(|guest| {
            for (handle, missing) in handles.iter().zip(&mut missing) {
                let socket = guest.tcp(*handle);
                while socket.can_recv() {
                    *missing -= socket.recv(|data| (data.len(), data.len())).unwrap();
                }
            }
            missing.iter().all(|missing| *missing == 0).then_some(())
        });
        show(
            &format!("{count} at once"),
            len * count,
            start.elapsed(),
            before,
        );
        handles.iter().for_each(|handle| guest.tcp(*handle).close());
        guest.until(|_| server.is_finished().then_some(()));
        server.join().unwrap();
    }
}
