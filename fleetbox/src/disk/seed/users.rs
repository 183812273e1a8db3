//! Who the guest's users are. The VM's user is cloud-init's default user, so what user data says about that one reaches
//! the VM's user: top-level `ssh_authorized_keys`, `ssh_import_id` and `password`, and `default` in `users`.

use super::SeedError;
use super::yaml::{Mapping, Yaml};

/// The name by which user data means the default user.
const DEFAULT: &str = "default";

/// What would lock fleetbox out of the guest if it were set for the VM's user.
const REFUSED: &[&str] = &[
    "expiredate",
    "inactive",
    "no_create_home",
    "snapuser",
    "ssh_redirect_user",
    "system",
];

/// Moves what `document` says about the VM's user `name` to where it takes effect in `ours`: the mapping `user`, which
/// wins against the image's own default user, and to the top level.
///
/// # Errors
/// [`SeedError::UserData`] if it names another default user, or would lock fleetbox out.
pub(super) fn adopt(
    ours: &mut Mapping,
    document: &mut Mapping,
    name: &str,
) -> Result<(), SeedError> {
    if let Some(Yaml::Map(info)) = document.get("system_info")
        && info.get("default_user").is_some()
    {
        return Err(other_default("system_info.default_user", name));
    }
    match document.remove("user") {
        None | Some(Yaml::Null) => {}
        Some(Yaml::Str(user)) if is_ours(&user, name) => {}
        Some(Yaml::Map(account)) if account_is_ours(&account, name) => {
            extend(ours, account, name)?;
        }
        Some(_) => return Err(other_default("user", name)),
    }
    if let Some(Yaml::List(users)) = document.get_mut("users") {
        for entry in std::mem::take(users) {
            match entry {
                Yaml::Str(user) if is_ours(&user, name) => {}
                Yaml::Map(account) if account_is_ours(&account, name) => {
                    extend(ours, account, name)?;
                }
                other => users.push(other),
            }
        }
    }
    Ok(())
}

fn is_ours(user: &str, name: &str) -> bool {
    user == DEFAULT || user == name
}

/// An entry without a name is the default user's.
fn account_is_ours(account: &Mapping, name: &str) -> bool {
    match account.get("name") {
        Some(user) => user.as_str().is_some_and(|user| is_ours(user, name)),
        None => true,
    }
}

fn other_default(key: &str, name: &str) -> SeedError {
    wrong(format!(
        "{key} names another default user, but in this VM that is {name}; list more users under `users:`, or \
         choose the name of the VM's user when you create it"
    ))
}

fn wrong(why: String) -> SeedError {
    SeedError::UserData { why }
}

/// Adds what an entry of `users` says about the VM's user.
fn extend(ours: &mut Mapping, account: Mapping, name: &str) -> Result<(), SeedError> {
    for (key, value) in account.into_pairs() {
        let Some(key) = key.as_str().map(|key| key.replace('-', "_")) else {
            continue;
        };
        match key.as_str() {
            "name" => {}
            "ssh_authorized_keys" => {
                let keys = list(value)
                    .ok_or_else(|| wrong(format!("ssh_authorized_keys of {name} is not a list")))?;
                ours.mapping("user").merge(one("ssh_authorized_keys", keys));
            }
            // cloud-init imports those of the default user from the top level only.
            "ssh_import_id" => {
                let ids = list(value)
                    .ok_or_else(|| wrong(format!("ssh_import_id of {name} is not a list")))?;
                ours.merge(one("ssh_import_id", ids));
            }
            // In an entry of its own, they are added to the groups of the image's default user.
            "groups" => add_groups(ours, value, name)?,
            "sudo" if value.to_string().contains("NOPASSWD:ALL") => {}
            "sudo" => return Err(locked_out(&key, name)),
            _ if REFUSED.contains(&key.as_str()) => return Err(locked_out(&key, name)),
            _ => ours.mapping("user").set(&key, value),
        }
    }
    Ok(())
}

fn locked_out(key: &str, name: &str) -> SeedError {
    wrong(format!(
        "{key} of {name} would lock fleetbox out, which logs in as {name}; leave it out, or set it for another user"
    ))
}

/// A list, of one text too.
fn list(value: Yaml) -> Option<Yaml> {
    match value {
        Yaml::Null => Some(Yaml::List(Vec::new())),
        Yaml::Str(_) => Some(Yaml::List(vec![value])),
        Yaml::List(_) => Some(value),
        _ => None,
    }
}

fn one(key: &str, value: Yaml) -> Mapping {
    let mut mapping = Mapping::default();
    mapping.set(key, value);
    mapping
}

fn add_groups(ours: &mut Mapping, value: Yaml, name: &str) -> Result<(), SeedError> {
    let groups = match value {
        Yaml::Str(text) => {
            let names = text
                .split(',')
                .map(|group| Yaml::Str(group.trim().to_owned()));
            names.collect()
        }
        Yaml::List(groups) => groups,
        Yaml::Null => return Ok(()),
        _ => return Err(wrong(format!("groups of {name} is not a list"))),
    };
    let mut entry = one("name", Yaml::Str(name.to_owned()));
    entry.set("groups", Yaml::List(groups.clone()));
    if let Some(Yaml::List(users)) = ours.get_mut("users") {
        let there = users.iter_mut().find_map(|user| match user {
            Yaml::Map(user) if account_is_ours(user, name) => user.get_mut("groups"),
            _ => None,
        });
        match there {
            Some(Yaml::List(there)) => there.extend(groups),
            _ => users.push(Yaml::Map(entry)),
        }
    }
    Ok(())
}

/// Sees to it that the password of the VM's user does not expire with the first boot, if user data sets one. cloud-init
/// would let it expire, and sshd would then refuse every command, with a key too, until somebody changed it.
///
/// # Errors
/// [`SeedError::UserData`] if the user data asks for that.
pub(super) fn keep_password(ours: &mut Mapping, name: &str) -> Result<(), SeedError> {
    let set = ours
        .get("password")
        .is_some_and(|value| *value != Yaml::Null);
    let listed = match ours.get("chpasswd") {
        None | Some(Yaml::Null) => false,
        Some(Yaml::Map(changes)) => changes_password(changes, name),
        Some(_) => return Err(wrong("chpasswd is not a mapping".to_owned())),
    };
    if !set && !listed {
        return Ok(());
    }
    let changes = ours.mapping("chpasswd");
    match changes.get("expire") {
        None => changes.set("expire", Yaml::Bool(false)),
        Some(Yaml::Bool(false)) => {}
        Some(_) => {
            return Err(wrong(format!(
                "chpasswd.expire is not false, and the expired password of {name} would lock fleetbox out; write \
                 `chpasswd: {{expire: false}}`"
            )));
        }
    }
    Ok(())
}

/// Checks that nothing makes a group of the name of the VM's user. cloud-init makes groups first, and `useradd` then
/// refuses to make the user.
///
/// # Errors
/// [`SeedError::UserData`].
pub(super) fn check_groups(ours: &Mapping, name: &str) -> Result<(), SeedError> {
    let entries = match ours.get("users") {
        Some(Yaml::List(users)) => users.as_slice(),
        _ => &[],
    };
    let of_users = entries.iter().filter_map(|user| match user {
        Yaml::Map(user) => Some(user),
        _ => None,
    });
    let of_users = of_users.flat_map(|user| [user.get("groups"), user.get("primary_group")]);
    let mut all = of_users.chain([ours.get("groups")]).flatten();
    if all.any(|groups| names_group(groups, name)) {
        return Err(wrong(format!(
            "a group {name} would be made before the user {name}, who could not be created then; choose another \
             group, or another name for the VM's user"
        )));
    }
    Ok(())
}

/// True if a list of groups, in any of cloud-init's forms, has this one.
fn names_group(groups: &Yaml, name: &str) -> bool {
    match groups {
        Yaml::Str(text) => text.split(',').any(|group| group.trim() == name),
        Yaml::List(groups) => groups.iter().any(|group| names_group(group, name)),
        Yaml::Map(groups) => groups.iter().any(|(group, _)| group.as_str() == Some(name)),
        _ => false,
    }
}

/// True if `chpasswd` sets the user's password.
fn changes_password(changes: &Mapping, name: &str) -> bool {
    let in_users = match changes.get("users") {
        Some(Yaml::List(users)) => users.iter().any(|user| match user {
            Yaml::Map(user) => user.get("name").and_then(Yaml::as_str) == Some(name),
            _ => false,
        }),
        _ => false,
    };
    let names = |line: &str| {
        line.trim_start()
            .split_once(':')
            .is_some_and(|(user, _)| user == name)
    };
    let in_list = match changes.get("list") {
        Some(Yaml::Str(lines)) => lines.lines().any(names),
        Some(Yaml::List(lines)) => lines.iter().filter_map(Yaml::as_str).any(names),
        _ => false,
    };
    in_users || in_list
}
