//! `ssh-config`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::host::Host;

#[test]
fn ssh_config_twice_in_and_once_out_leaves_every_byte() {
    let host = Host::new();
    host.vm("web", "web", Path::new("/none"));
    let dir = host.dir.path().join(".ssh");
    fs::create_dir(&dir).expect("a directory");
    let file = dir.join("config");
    let own = b"# mine\r\nHost myserver\n\tHostName example.invalid";
    fs::write(&file, own).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");

    host.ends(0, &["ssh-config", "--install"]);
    let once = fs::read(&file).expect("the file");
    assert!(
        host.ends(0, &["ssh-config", "--install"])
            .contains("already")
    );
    assert_eq!(fs::read(&file).expect("the file"), once);
    let text = String::from_utf8_lossy(&once);
    assert_eq!(text.matches("Include ").count(), 1, "{text}");
    assert!(once.ends_with(own));

    // What OpenSSH makes of it, where it is installed; it looks at the user's real home itself.
    let included = host.state().join("ssh/config");
    let blocks = fs::read_to_string(&included).expect("the included file");
    assert!(
        blocks.contains("Host web web.fleetbox web.web web.web.fleetbox\n"),
        "{blocks}"
    );
    if let Ok(output) = Command::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(&file)
        .arg("web")
        .output()
    {
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("hostname web.fleetbox\n"), "{output:?}");
        assert!(told.contains(" dial web/web 22\n"), "{told}");
    }
    let hosts = fs::read_to_string(host.state().join("ssh/known_hosts")).expect("known hosts");
    assert_eq!(hosts, "web.fleetbox ssh-ed25519 AAAAweb\n");

    // It follows what VMs there are.
    host.ends(0, &["rm", "web"]);
    assert_eq!(
        fs::read_to_string(&included).expect("the included file"),
        ""
    );

    host.ends(0, &["ssh-config", "--uninstall"]);
    assert_eq!(fs::read(&file).expect("the file"), own);
    let mode = fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert!(!included.exists());
    assert!(
        host.ends(0, &["ssh-config", "--uninstall"])
            .contains("nothing")
    );
}
