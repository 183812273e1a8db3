//! `images`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};

use crate::host::Host;

/// One answer for each connection: a page that lists snapshots.
fn page_server(page: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 2048];
            let _ = stream.read(&mut request);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    port
}

#[test]
fn newer_snapshots_are_found_and_images_deleted_unless_used() {
    let host = Host::new();
    let port = page_server("<a href=\"20260101-1/\">a</a> <a href=\"20260301-2/\">b</a>");
    let catalogue = host.dir.path().join("catalogue.json");
    let sum = "0".repeat(64);
    let entry = serde_json::json!({
        "snapshot": "20260101-1",
        "amd64": {"url": format!("http://127.0.0.1:{port}/x/20260101-1/mine.raw"), "sha256": sum},
        "arm64": {"url": format!("http://127.0.0.1:{port}/x/20260101-1/mine.raw"), "sha256": sum},
    });
    let text = serde_json::json!({"format": 1, "images": {"mine": entry}});
    fs::write(&catalogue, text.to_string()).expect("a catalogue");
    let run = |args: &[&str]| {
        host.command(args)
            .env("FLEETBOX_CATALOGUE", &catalogue)
            .output()
            .expect("the command starts")
    };
    let output = run(&["images", "refresh", "mine", "--json"]);
    let fresh: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(fresh[0]["newest"], "20260301-2", "{output:?}");
    assert_eq!(run(&["images", "refresh", "none"]).status.code(), Some(1));

    let arch = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let image = host
        .store()
        .images_dir()
        .join(format!("mine-{arch}-{}.raw", "0".repeat(16)));
    fs::write(&image, "image").expect("an image");
    host.vm("web", "web", &image);
    let output = run(&["images", "rm", "mine"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("VM web needs it") && image.exists(),
        "{error}"
    );
    host.ends(0, &["rm", "web"]);
    let output = run(&["images", "rm", "mine"]);
    assert!(output.status.success() && !image.exists(), "{output:?}");
    fs::write(&image, "image").expect("an image");
    let output = run(&["images", "rm", "--all"]);
    assert!(output.status.success() && !image.exists(), "{output:?}");
    // A file of the user's is not fleetbox's to delete.
    let own = host.dir.path().join("own.raw");
    fs::write(&own, "image").expect("an image");
    let output = run(&["images", "rm", own.to_str().expect("UTF-8")]);
    assert!(!output.status.success() && own.exists(), "{output:?}");
}
