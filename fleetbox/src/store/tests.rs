use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::model::size::Size;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn record(cluster: &str, vm: &str) -> VmRecord {
    VmRecord {
        name: name(vm),
        cluster: name(cluster),
        image: ImageRecord {
            reference: "debian-12".into(),
            path: "/images/x.raw".into(),
            sha256: Some("00".repeat(32)),
        },
        cpus: 2,
        memory: Size::gib(1),
        disk: Size::gib(10),
        mac: MacAddr::random(),
        ip: Ipv4Addr::new(10, 187, 41, 2),
        created: now(),
        instance_id: "i-1".into(),
        ssh_user: "fleetbox".into(),
        ssh_key: "ssh-ed25519 AAAA".into(),
        host_key: "ssh-ed25519 BBBB".into(),
        fixtures: Vec::new(),
        config: crate::disk::seed::GuestConfig::default(),
        extra_disks: Vec::new(),
        network: crate::model::network::Network::User,
    }
}

fn create(store: &Store, cluster: &str, vm: &str) -> (VmDir, Lock) {
    let draft = store.create_vm(&name(cluster), &name(vm)).unwrap();
    fs::write(draft.paths().disk_layer(), b"disk").unwrap();
    draft.commit(&record(cluster, vm)).unwrap()
}

#[test]
fn a_vm_lives_from_commit_to_destroy() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("state");
    let store = Store::open(&home).unwrap();
    let draft = store.create_vm(&name("c"), &name("a")).unwrap();
    assert!(store.vms().unwrap().is_empty(), "a draft is no VM");
    fs::write(draft.paths().disk_layer(), b"disk").unwrap();
    let written = record("c", "a");
    let (vm, lock) = draft.commit(&written).unwrap();
    assert_eq!(lock.path(), vm.paths().lock());

    // Another process sees the same.
    let again = Store::open(&home).unwrap();
    let found = again.find(&name("a")).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].record().unwrap(), written);
    assert!(found[0].paths().disk_layer().is_file());
    assert!(found[0].is_running().unwrap());
    assert!(matches!(
        found[0].destroy(),
        Err(StoreError::Running { .. })
    ));
    drop(lock);
    assert!(!found[0].is_running().unwrap());
    let lock = found[0].try_lock().unwrap().unwrap();
    drop(lock);
    found[0].destroy().unwrap();
    found[0].destroy().unwrap();
    assert!(store.vms().unwrap().is_empty());
    assert!(
        store.clusters().unwrap().is_empty(),
        "an empty cluster goes with its last VM"
    );
}

#[test]
fn members_have_addresses_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("state")).unwrap();
    let ip = |vm: &VmDir| vm.record().unwrap().ip;
    // All ask for the same address, as they do whose creators know nothing of each other.
    let vms: Vec<_> = ["a", "b", "c"].map(|vm| create(&store, "n", vm).0).into();
    let given: Vec<_> = vms.iter().map(ip).collect();
    assert_eq!(
        given,
        [2, 3, 4].map(|last| Ipv4Addr::new(10, 187, 41, last))
    );
    assert_eq!(ip(&create(&store, "other", "a").0), given[0]);
    // One that is free again is given again, and nobody's changes by that.
    vms[1].destroy().unwrap();
    assert_eq!(ip(&create(&store, "n", "d").0), given[1]);
    assert_eq!(ip(&vms[2]), given[2]);

    let subnet = "10.187.41.0/29".parse().unwrap();
    let add = |vm: &str| {
        let draft = store.create_vm(&name("n"), &name(vm)).unwrap();
        draft.commit_in(&record("n", vm), subnet)
    };
    for vm in ["e", "f"] {
        add(vm).unwrap();
    }
    assert!(matches!(add("g"), Err(StoreError::Full { .. })));
    assert!(store.cluster(&name("n")).vm(&name("g")).is_none());
}

#[test]
fn everything_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("state")).unwrap();
    let (vm, _lock) = create(&store, "c", "a");
    for (path, mode) in [
        (store.home(), 0o700),
        (&store.images_dir(), 0o700),
        (&store.keys_dir(), 0o700),
        (vm.paths().dir(), 0o700),
        (&vm.paths().record(), 0o600),
        (&vm.paths().lock(), 0o600),
        (&store.home().join("version"), 0o600),
    ] {
        let found = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}", path.display());
    }
}

#[test]
fn two_vms_of_one_name_need_two_clusters() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let _a = create(&store, "c", "a");
    assert!(matches!(
        store.create_vm(&name("c"), &name("a")),
        Err(StoreError::Exists { .. })
    ));
    let _b = create(&store, "d", "a");
    assert_eq!(store.find(&name("a")).unwrap().len(), 2);

    // Two at once: the first commit wins, the second leaves nothing.
    let one = store.create_vm(&name("c"), &name("x")).unwrap();
    let two = store.create_vm(&name("c"), &name("x")).unwrap();
    one.commit(&record("c", "x")).unwrap();
    assert!(matches!(
        two.commit(&record("c", "x")),
        Err(StoreError::Exists { .. })
    ));
    let left: Vec<_> = fs::read_dir(store.cluster(&name("c")).path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|n| n.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    drop(store.create_vm(&name("c"), &name("a")).unwrap());
    assert!(!store.cluster(&name("c")).path().exists());
}

#[test]
fn what_a_kill_leaves_is_swept_and_what_lives_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (kept, _lock) = create(&store, "c", "kept");
    let living = store.create_vm(&name("c"), &name("living")).unwrap();

    // A creator killed in the middle, a remover killed in the middle.
    let cluster = store.cluster(&name("c"));
    let half_new = cluster.path().join(".new-a-0");
    let half_gone = cluster.path().join(".gone-b-0");
    for path in [&half_new, &half_gone] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("lock"), b"").unwrap();
        fs::write(path.join("disk.layer"), b"x").unwrap();
    }
    // A record that never became final, in a temporary file.
    fs::write(half_new.join(".tmp-abc"), b"{").unwrap();

    assert_eq!(store.sweep().unwrap(), 2);
    assert!(!half_new.exists() && !half_gone.exists());
    assert!(living.paths().dir().exists());
    assert_eq!(store.vms().unwrap().len(), 1);
    kept.record().unwrap();
    living.commit(&record("c", "living")).unwrap();
    assert_eq!(store.vms().unwrap().len(), 2);

    // Temporary files of a VM, of which only old ones belong to nobody.
    let [old, new] = [".tmp-old", ".tmp-new"].map(|name| kept.paths().dir().join(name));
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let file = fs::File::create(&old).unwrap();
    file.set_modified(long_ago).unwrap();
    fs::write(&new, "").unwrap();
    store.sweep().unwrap();
    assert!(!old.exists() && new.exists());
}

#[test]
fn newer_and_damaged_formats_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    fs::remove_dir_all(dir.path()).unwrap();
    fs::create_dir(dir.path()).unwrap();
    fs::write(dir.path().join("version"), "2\n").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 2, .. }));
    assert!(
        error.to_string().contains("use a newer fleetbox"),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(dir.path().join("version")).unwrap(),
        "2\n"
    );
    for bad in ["", "x", "0", "-1"] {
        fs::write(dir.path().join("version"), bad).unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(StoreError::Damaged { .. })
        ));
    }
}

#[test]
fn a_damaged_record_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (vm, _lock) = create(&store, "c", "a");
    fs::write(vm.paths().record(), b"{\"name\": \"../x\"}").unwrap();
    let error = vm.record().unwrap_err().to_string();
    assert!(error.contains("vm.json is damaged"), "{error}");
}

#[test]
fn clusters_of_another_user_hide_no_others() {
    /// Neither root nor the user of these tests.
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for cluster in ["mine", "roots"] {
        create(&store, cluster, cluster);
    }
    let theirs = dir.path().join("clusters/roots");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o000)).unwrap();
    for shared in ["", "clusters", "clusters/mine", "clusters/mine/mine"] {
        let path = dir.path().join(shared);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Root may read all; a thread that has another identity towards file systems may not.
    let seen = std::thread::spawn(move || {
        if nix::unistd::geteuid().is_root() {
            nix::unistd::setfsuid(NOBODY.into());
        }
        let vms = store.vms().unwrap();
        vms.iter()
            .map(|vm| vm.name().to_string())
            .collect::<Vec<_>>()
    });
    assert_eq!(seen.join().unwrap(), ["mine"]);
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_cluster_stays_while_its_worker_lives() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let cluster = store.cluster(&name("c"));
    let worker = cluster.try_lock().unwrap().unwrap();
    assert!(cluster.is_running().unwrap());
    assert!(cluster.try_lock().unwrap().is_none());
    let (vm, lock) = create(&store, "c", "a");
    drop(lock);
    vm.destroy().unwrap();
    store.sweep().unwrap();
    assert!(cluster.path().exists());
    drop(worker);
    store.sweep().unwrap();
    assert!(!cluster.path().exists());
}

#[test]
fn a_found_vm_is_not_another_one_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("state")).unwrap();
    drop(create(&store, "c", "a"));
    let found = store.cluster(&name("c")).vm(&name("a")).unwrap();
    found.destroy().unwrap();
    let draft = store.create_vm(&name("c"), &name("a")).unwrap();
    let other = VmRecord {
        instance_id: "i-2".into(),
        ..record("c", "a")
    };
    let (other, lock) = draft.commit(&other).unwrap();
    let gone = |result: Result<(), StoreError>| matches!(result, Err(StoreError::Gone { .. }));
    assert!(gone(found.check()));
    assert!(gone(found.record().map(drop)));
    assert!(!found.is_running().unwrap() && other.is_running().unwrap());
    drop(lock);
    assert!(gone(found.try_lock().map(drop)));
    found.destroy().unwrap();
    assert!(other.try_lock().unwrap().is_some());
    assert!(!found.is_same(&other));

    // One whose record is damaged can be removed, too.
    fs::write(other.paths().record(), "{").unwrap();
    let damaged = store.cluster(&name("c")).vm(&name("a")).unwrap();
    damaged.check().unwrap();
    damaged.destroy().unwrap();
    assert!(gone(damaged.try_lock().map(drop)));
}
