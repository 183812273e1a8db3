//! Links the payloads at a fixed address with a PVH note; nothing to do for the host.

fn main() {
    println!("cargo::rerun-if-changed=guest.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{dir}/guest.ld");
        println!("cargo::rustc-link-arg-bins=--no-pie");
    }
}
