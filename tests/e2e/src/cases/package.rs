//! A package of Debian's in one file, made here, so that installing one needs no archive.

use std::path::Path;

use crate::report::Must;

/// The package's name.
pub(crate) const NAME: &str = "fleetbox-probe";
/// The file it brings along, and what is in that.
pub(crate) const FILE: &str = "/srv/probe";
pub(crate) const CONTENT: &str = "installed from a file\n";

/// Writes the package: an archive of `ar` with the format's version and two of `tar` (deb(5)).
pub(crate) fn write(path: &Path) {
    let control = format!(
        "Package: {NAME}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n\
         Description: a file\n"
    );
    let mut archive = b"!<arch>\n".to_vec();
    for (name, content) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar", tar("./control", control.as_bytes())),
        ("data.tar", tar(&format!(".{FILE}"), CONTENT.as_bytes())),
    ] {
        // Name, time, owner, group, mode, length; what is of odd length is padded.
        let header = format!(
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
            0,
            0,
            0,
            "100644",
            content.len()
        );
        archive.extend(header.bytes());
        let odd = content.len() % 2 == 1;
        archive.extend(content);
        if odd {
            archive.push(b'\n');
        }
    }
    std::fs::write(path, archive).must("cannot write a package");
}

fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_data(&mut header, name, content)
        .and_then(|()| builder.into_inner())
        .must("cannot make an archive")
}
