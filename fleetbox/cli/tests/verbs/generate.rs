//! `completions` and `man`.

use std::fs;
use std::process::Command;

use crate::host::Host;

#[test]
fn completions_and_manual_pages_know_the_verbs() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = host.ends(0, &["completions", shell]);
        assert!(text.contains("ssh-config"), "{shell}");
    }
    let page = host.ends(0, &["man"]);
    assert!(page.contains(".TH fleetbox 1"), "{page}");
    let dir = host.dir.path().join("man1");
    host.ends(0, &["man", "--dir", dir.to_str().expect("UTF-8")]);
    for page in ["fleetbox.1", "fleetbox-up.1", "fleetbox-images-ls.1"] {
        assert!(dir.join(page).is_file(), "{page}");
    }
    assert!(!host.state().exists(), "something was created");
    // A bash that has it loaded offers them.
    let script = host.dir.path().join("completion");
    fs::write(&script, host.ends(0, &["completions", "bash"])).expect("a file");
    let Ok(output) = Command::new("bash")
        .arg("-c")
        .arg("source \"$0\" && COMP_WORDS=(fleetbox re) COMP_CWORD=1 && _fleetbox fleetbox re fleetbox && echo ${COMPREPLY[@]}")
        .arg(&script)
        .output()
    else {
        return;
    };
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "restart\n",
        "{output:?}"
    );
}
