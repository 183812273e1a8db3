//! Tests of the seed as a whole: what is on the volume, and whom user data reaches.

use std::io::Read as _;

use serde_json::{Value, json};

use super::oracle_test::{self as oracle, Questions};
use super::*;

fn seed() -> Seed {
    Seed {
        instance_id: "i-1".into(),
        hostname: Name::new("web").unwrap(),
        user: DEFAULT_USER.into(),
        authorized_keys: vec!["ssh-ed25519 AAAA \"quoted\": # [x]".into()],
        host_key: Keypair::generate("web").unwrap(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mounts: Vec::new(),
        config: GuestConfig::default(),
    }
}

fn read(image: &[u8], name: &str) -> String {
    let fs = fatfs::FileSystem::new(Cursor::new(image.to_vec()), fatfs::FsOptions::new());
    let fs = fs.unwrap();
    let mut text = String::new();
    fs.root_dir()
        .open_file(name)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// The user data of a seed. All of it is JSON unless the user's documents have what JSON has not.
fn user_data(seed: &Seed) -> Value {
    let text = read(&seed.build().unwrap(), "user-data");
    serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap()
}

fn refused(documents: &[&str]) -> String {
    let mut seed = seed();
    for document in documents {
        seed.config.add_user_data(document).unwrap();
    }
    seed.build().unwrap_err().to_string()
}

#[test]
fn the_volume_reads_back_and_has_the_label_twice() {
    let image = seed().build().unwrap();
    assert_eq!(image.len(), MIB);
    let fs = fatfs::FileSystem::new(Cursor::new(image.clone()), fatfs::FsOptions::new());
    let fs = fs.unwrap();
    assert_eq!(fs.volume_label(), "CIDATA");
    // blkid takes the label of the root directory, not that of the boot sector.
    let label = fs.read_volume_label_from_root_dir().unwrap();
    assert_eq!(label.as_deref(), Some("CIDATA"));
    let mut names: Vec<_> = fs
        .root_dir()
        .iter()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["meta-data", "network-config", "user-data"]);
}

#[test]
fn the_files_say_what_was_asked_for() {
    let seed = seed();
    let image = seed.build().unwrap();
    let meta: Value = serde_json::from_str(&read(&image, "meta-data")).unwrap();
    assert_eq!(meta, json!({"instance-id": "i-1", "local-hostname": "web"}));

    let network: Value = serde_json::from_str(&read(&image, "network-config")).unwrap();
    let lan = &network["ethernets"]["lan"];
    assert_eq!(network["version"], 2);
    assert_eq!(lan["match"], json!({"macaddress": "02:00:00:00:00:01"}));
    assert_eq!(lan["dhcp4"], true);
    assert_eq!(lan["dhcp4-overrides"], json!({"use-domains": true}));

    let user_data = user_data(&seed);
    assert_eq!(user_data["users"], json!(["default"]));
    let user = &user_data["user"];
    assert_eq!(user["name"], "fleetbox");
    assert_eq!(user["ssh_authorized_keys"], json!(seed.authorized_keys));
    assert_eq!(user["sudo"], json!("ALL=(ALL) NOPASSWD:ALL"));
    assert_eq!(user_data["ssh_pwauth"], false);
    assert_eq!(user_data["fqdn"], "web.fleetbox");
    assert_eq!(user_data.get("mounts"), None);
    let private = user_data["ssh_keys"]["ed25519_private"].as_str().unwrap();
    let key = Keypair::from_openssh(private).unwrap();
    assert_eq!(key.public(), seed.host_key.public());
    assert_eq!(
        user_data["ssh_keys"]["ed25519_public"].as_str().unwrap(),
        key.public().to_string()
    );
}

#[test]
fn mounts_are_lists_of_fields() {
    let mut seed = seed();
    seed.mounts = vec![["/dev/x", "/work", "ext4", "ro", "0", "0"].map(str::to_owned)];
    let user_data = user_data(&seed);
    assert_eq!(
        user_data["mounts"],
        json!([["/dev/x", "/work", "ext4", "ro", "0", "0"]])
    );
}

#[test]
fn the_users_configuration_is_added() {
    let mut seed = seed();
    let key = Keypair::generate("me").unwrap().public().to_string();
    seed.config.authorized_keys.push(key.clone());
    seed.config
        .add_user_data("users: [{name: other}]\nruncmd: [reboot]\nssh_pwauth: true")
        .unwrap();
    let user_data = user_data(&seed);
    assert_eq!(user_data["user"]["ssh_authorized_keys"][1], json!(key));
    assert_eq!(user_data["users"], json!(["default", {"name": "other"}]));
    assert_eq!(user_data["runcmd"], json!(["reboot"]));
    assert_eq!(user_data["ssh_pwauth"], true);
    assert_eq!(user_data["hostname"], "web");
}

#[test]
fn what_user_data_says_about_the_default_user_is_said_about_the_vms_user() {
    let mut seed = seed();
    seed.user = "admin".into();
    for document in [
        "ssh_authorized_keys: [top]\nssh_import_id: [gh:top]\npassword: secret",
        "users: [default, admin, {name: joe, groups: [adm]}]",
        "users:\n- name: admin\n  ssh-authorized-keys: entry\n  sudo: ALL=(ALL) NOPASSWD:ALL\n  groups: docker, kvm",
        "users: [{name: default, ssh_import_id: 'gh:entry', shell: /bin/zsh, groups: [lp]}, {gecos: Me}]",
        "user: {ssh_authorized_keys: [user]}\nmerge_how: 'list(append)+dict(recurse_array)+str()'",
    ] {
        seed.config.add_user_data(document).unwrap();
    }
    let user_data = user_data(&seed);
    let user = json!({
        "name": "admin", "gecos": "Me", "shell": "/bin/zsh", "sudo": "ALL=(ALL) NOPASSWD:ALL", "lock_passwd": true,
        "ssh_authorized_keys": [seed.authorized_keys[0], "entry", "user"],
    });
    assert_eq!(user_data["user"], user);
    let groups = json!({"name": "admin", "groups": ["docker", "kvm", "lp"]});
    let joe = json!({"name": "joe", "groups": ["adm"]});
    assert_eq!(user_data["users"], json!(["default", joe, groups]));
    assert_eq!(user_data["ssh_authorized_keys"], json!(["top"]));
    assert_eq!(user_data["ssh_import_id"], json!(["gh:top", "gh:entry"]));
    assert_eq!(user_data["password"], "secret");
    // An expired password would make sshd refuse fleetbox's commands.
    assert_eq!(user_data["chpasswd"], json!({"expire": false}));
    assert_eq!(user_data.get("merge_how"), None);
}

#[test]
fn a_password_of_another_user_may_expire() {
    let mut seed = seed();
    let change = "chpasswd: {users: [{name: joe, password: x}], list: ['joe:x']}";
    seed.config.add_user_data(change).unwrap();
    assert_eq!(user_data(&seed)["chpasswd"].get("expire"), None);
    for change in [
        "chpasswd: {users: [{name: fleetbox, password: x}]}",
        "chpasswd: {list: \"joe:x\\nfleetbox:y\"}",
        "chpasswd: {list: ['fleetbox:y']}",
    ] {
        let mut seed = self::seed();
        seed.config.add_user_data(change).unwrap();
        assert_eq!(user_data(&seed)["chpasswd"]["expire"], false, "{change}");
    }
}

#[test]
fn what_would_lock_fleetbox_out_is_refused() {
    for (document, why) in [
        (
            "user: joe",
            "user names another default user, but in this VM that is fleetbox",
        ),
        ("user: {name: joe}", "another default user"),
        (
            "system_info: {default_user: {name: joe}}",
            "system_info.default_user names another",
        ),
        (
            "users: [{name: fleetbox, expiredate: '2000-01-01'}]",
            "expiredate of fleetbox would lock fleetbox out",
        ),
        (
            "users: [{name: default, ssh_redirect_user: true}]",
            "ssh_redirect_user of fleetbox",
        ),
        ("users: [{inactive: '1'}]", "inactive of fleetbox"),
        ("users: [{name: fleetbox, sudo: false}]", "sudo of fleetbox"),
        (
            "users: [{name: fleetbox, ssh_authorized_keys: 1}]",
            "is not a list",
        ),
        (
            "groups: [docker, fleetbox]",
            "a group fleetbox would be made before the user",
        ),
        ("groups: [fleetbox: [joe]]", "a group fleetbox"),
        ("groups: a, fleetbox", "a group fleetbox"),
        (
            "users: [{name: joe, groups: 'docker, fleetbox'}]",
            "a group fleetbox",
        ),
        (
            "users: [{name: joe, primary_group: fleetbox}]",
            "a group fleetbox",
        ),
        (
            "users: [{name: fleetbox, groups: [fleetbox]}]",
            "a group fleetbox",
        ),
        (
            "password: x\nchpasswd: {expire: true}",
            "chpasswd.expire is not false",
        ),
        (
            "password: x\nchpasswd: [expire]",
            "chpasswd is not a mapping",
        ),
    ] {
        let error = refused(&[document]);
        assert!(
            error.starts_with("invalid user data: ") && error.contains(why),
            "{document}: {error}"
        );
    }
}

#[test]
fn keys_users_and_passwords_arrive_in_the_real_cloud_init() {
    let mut other = seed();
    other.config.add_user_data("users: [default, {name: joe, ssh_authorized_keys: [joe]}]\nruncmd: [\"x\\uFFFEy\\x7f\"]").unwrap();
    other
        .config
        .commands
        .push("printf '\u{7f}\u{80}\u{2028}\u{fffe}\u{1f680}\u{1b}'\r\n\ttrue".into());
    let mut top = seed();
    top.config
        .add_user_data("ssh_authorized_keys: [top]\npassword: secret\nssh_import_id: [gh:x]")
        .unwrap();
    let entry = "users: [{name: fleetbox, ssh_authorized_keys: [entry], groups: [docker]}]";
    top.config.add_user_data(entry).unwrap();
    let seeds = [seed(), other, top];
    let texts = seeds
        .iter()
        .map(|seed| read(&seed.build().unwrap(), "user-data"));
    let questions = Questions {
        documents: Vec::new(),
        seeds: texts.collect(),
    };
    let Some(answers) = oracle::ask(&questions) else {
        return;
    };
    let own = &seeds[0].authorized_keys[0];
    let [plain, other, top] = answers.seeds.as_slice() else {
        panic!("{} answers", answers.seeds.len());
    };
    for answer in [plain, other, top] {
        assert_eq!(answer["default"], "fleetbox");
        let user = &answer["users"]["fleetbox"];
        assert_eq!(user["ssh_authorized_keys"][0], json!(own));
        assert_eq!(user["sudo"], "ALL=(ALL) NOPASSWD:ALL");
        assert_eq!(user["lock_passwd"], true);
        assert_eq!(answer["users"].get("debian"), None);
        assert_eq!(answer["expired"], json!([]));
    }
    assert_eq!(other["users"]["joe"]["ssh_authorized_keys"], json!(["joe"]));
    let commands = json!(["x\u{fffe}y\u{7f}", seeds[1].config.commands[0]]);
    assert_eq!(other["config"]["runcmd"], commands);
    assert_eq!(top["keys"]["fleetbox"], json!(["top"]));
    assert_eq!(top["imports"], json!({"fleetbox": ["gh:x"]}));
    assert_eq!(top["passwords"], json!([["fleetbox", "secret"]]));
    let user = &top["users"]["fleetbox"];
    assert_eq!(user["ssh_authorized_keys"], json!([own, "entry"]));
    assert_eq!(user["groups"], "adm,docker,sudo");
}

#[test]
fn every_text_is_written_so_that_it_is_read_as_itself() {
    let all: String = (1..0x3000)
        .chain(0xe000..0xf000)
        .chain(0xff00..0x10400)
        .filter_map(char::from_u32)
        .collect();
    let mut seed = seed();
    seed.config.commands = vec![all.clone(), "🚀".into(), "x".repeat(3000)];
    let text = read(&seed.build().unwrap(), "user-data");
    assert!(text.is_ascii() && !text.contains('\u{7f}'));
    let Yaml::Map(read) = yaml::load(&text).unwrap() else {
        panic!("{text}");
    };
    let Some(Yaml::List(commands)) = read.get("runcmd") else {
        panic!("{text}");
    };
    assert_eq!(commands[0].as_str(), Some(all.as_str()));
    assert_eq!(commands[1].as_str(), Some("🚀"));
}

#[test]
fn the_file_is_written_whole_and_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.img");
    seed().write(&path).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), MIB as u64);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn content_that_does_not_fit_is_refused() {
    let mut seed = seed();
    seed.authorized_keys = vec!["x".repeat(2 * MIB)];
    assert_eq!(seed.build().unwrap().len(), 3 * MIB);
    seed.authorized_keys = vec!["x".repeat(LARGEST)];
    assert!(matches!(seed.build(), Err(SeedError::TooLarge { .. })));
}

#[test]
fn bad_users_are_refused() {
    for bad in ["", "Root", "a b", "-a", "1a", "a:b", &"a".repeat(33)] {
        assert!(
            matches!(check_user(bad), Err(SeedError::User { .. })),
            "{bad}"
        );
    }
    check_user("_svc-1").unwrap();
}
