//! TCP throughput: between two guests, from a guest to its host and back, and beside them the loopback of that host.
//!
//! Needs a KVM that runs stock kernels and an image with busybox in FLEETBOX_BENCH_IMAGE: `cargo xtask bench net` builds
//! one, and runs this in the emulated host where there is no such KVM. All numbers are from one run on one host, so the
//! last column, the part of loopback's rate, can be compared between hosts.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use fleetbox::{Cluster, Size, Vm};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long each rate is measured.
const TIME: Duration = Duration::from_secs(4);
/// How long a peer may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes given to the kernel at a time.
const CHUNK: usize = 64 << 10;
/// Bytes of the transfer between guests by which the measured one is sized.
const TRIAL: u64 = 2 << 20;

fn main() -> Result<()> {
    let image = std::env::var("FLEETBOX_BENCH_IMAGE")
        .map_err(|_| "FLEETBOX_BENCH_IMAGE names no disk image: use `cargo xtask bench net`")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let home = tempfile::tempdir()?;
    let builder = Cluster::test()
        .count(2)
        .image(image)
        .cpus(1)
        .memory(Size::mib(256))
        .disk(Size::gib(2))
        .boot_timeout(Duration::from_secs(300))
        .home(home.path());
    let cluster = runtime.block_on(builder.start())?;
    let [one, two] = cluster.members() else {
        return Err("a cluster of two has other members".into());
    };

    let floor = loopback()?;
    show("loopback of the host", floor, floor);
    let outer = outer_address()?;
    let to_host = runtime.block_on(async { guest_to_host(one, outer).await })?;
    show("guest to host", to_host, floor);
    let to_guest = runtime.block_on(async { host_to_guest(one, outer).await })?;
    show("host to guest", to_guest, floor);
    let between = runtime.block_on(guest_to_guest(one, two))?;
    show("guest to guest", between, floor);
    runtime.block_on(cluster.destroy())?;
    Ok(())
}

/// Prints a rate, in bytes per second.
fn show(what: &str, rate: f64, floor: f64) {
    let mebibytes = rate / f64::from(1 << 20);
    println!(
        "{what:<22}{mebibytes:9.1} MiB/s{:8.2} %",
        100.0 * rate / floor
    );
}

/// An address of this host that is not loopback.
fn outer_address() -> Result<IpAddr> {
    // Connecting a datagram socket only chooses a route: nothing is sent.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("198.51.100.1:9")?;
    Ok(socket.local_addr()?.ip())
}

/// Reads for some time, from the first byte on; bytes per second.
fn measure_reading(mut stream: TcpStream) -> Result<f64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; CHUNK];
    stream.read_exact(&mut buffer[..1])?;
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        match stream.read(&mut buffer)? {
            0 => return Err("the connection ended before its time".into()),
            len => bytes += len,
        }
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

/// Writes for some time; bytes per second. What is in buffers at the end counts, a fraction of a second's worth.
fn measure_writing(mut stream: TcpStream) -> Result<f64> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let buffer = vec![0; CHUNK];
    // Buffers are filled before the time begins.
    let warm_up = Instant::now();
    while warm_up.elapsed() < TIME / 4 {
        stream.write_all(&buffer)?;
    }
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        stream.write_all(&buffer)?;
        bytes += buffer.len();
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

/// The floor: the same through the kernel alone.
fn loopback() -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (receiver, _) = listener.accept()?;
    let sending = std::thread::spawn(move || {
        let buffer = vec![0; CHUNK];
        // Ends with the receiver.
        while sender.write_all(&buffer).is_ok() {}
    });
    let rate = measure_reading(receiver);
    sending.join().map_err(|_| "the sender panicked")?;
    rate
}

/// Has the guest run `command` while `measure` has its connection.
async fn with_guest<F>(vm: &Vm, outer: IpAddr, command: &str, measure: F) -> Result<f64>
where
    F: FnOnce(TcpStream) -> Result<f64>,
{
    let listener = TcpListener::bind((outer, 0))?;
    let address = listener.local_addr()?;
    let command = command
        .replace("HOST", &address.ip().to_string())
        .replace("PORT", &address.port().to_string());
    let child = vm.ssh_spawn(&command).await?;
    let rate = measure(accept(&listener)?)?;
    drop(child);
    Ok(rate)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn guest_to_host(vm: &Vm, outer: IpAddr) -> Result<f64> {
    let command = "dd if=/dev/zero bs=64k 2>/dev/null | nc HOST PORT";
    with_guest(vm, outer, command, measure_reading).await
}

async fn host_to_guest(vm: &Vm, outer: IpAddr) -> Result<f64> {
    let command = "nc HOST PORT </dev/null >/dev/null";
    with_guest(vm, outer, command, measure_writing).await
}

async fn guest_to_guest(from: &Vm, to: &Vm) -> Result<f64> {
    let trial = transfer(from, to, 5001, TRIAL).await?;
    let bytes = (trial * TIME.as_secs_f64()) as u64;
    transfer(from, to, 5002, bytes.max(TRIAL)).await
}

/// Sends `bytes` and takes the time with the sender's clock, from the connection's start to the receiver's end of it.
async fn transfer(from: &Vm, to: &Vm, port: u16, bytes: u64) -> Result<f64> {
    // Its standard input stays open: at the end of that it would close its half, and the sender would stop.
    let child = to.ssh_spawn(&format!("nc -l -p {port} >/dev/null")).await?;
    let address = SocketAddr::new(to.ip().into(), port);
    let command = format!(
        "i=0; while [ $i -lt 100 ]; do \
         read a b </proc/uptime; head -c {bytes} /dev/zero | nc {} {port} 2>/dev/null && break; \
         i=$((i+1)); sleep 0.1; done; \
         read c d </proc/uptime; echo $a $c",
        address.ip()
    );
    let output = from.ssh(&command).await?;
    let text = output.stdout_text();
    let mut times = text.split_whitespace().map(str::parse::<f64>);
    let (Some(Ok(start)), Some(Ok(end))) = (times.next(), times.next()) else {
        return Err(format!("the guest answered {text:?}").into());
    };
    drop(child);
    if end <= start {
        return Err(format!("{bytes} bytes took no time").into());
    }
    Ok(bytes as f64 / (end - start))
}
