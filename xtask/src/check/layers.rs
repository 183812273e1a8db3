//! Checks that every import of a package follows the order of the rooms.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::imports;
use super::rooms::Rooms;
use super::tree::Tree;
use crate::bail;
use crate::error::{Error, Result};

/// The result of checking one package.
#[derive(Debug)]
pub(super) struct Checked {
    /// The number of imports from one room to another.
    pub(super) imports: usize,
    pub(super) complaints: Vec<String>,
}

/// Checks the package with sources in `rooms.dir`, below `workspace`.
pub(super) fn check(workspace: &Path, rooms: &Rooms) -> Result<Checked> {
    let dir = workspace.join(&rooms.dir);
    let roots: Vec<_> = ["lib.rs", "main.rs"]
        .map(|name| dir.join(name))
        .into_iter()
        .filter(|root| root.is_file())
        .collect();
    if roots.is_empty() {
        bail!("{} has neither lib.rs nor main.rs", rooms.dir);
    }
    let mut checked = Checked {
        imports: 0,
        complaints: Vec::new(),
    };
    let mut files = BTreeMap::new();
    for root in &roots {
        let tree = Tree::read(root)?;
        checked.look(workspace, &dir, rooms, &tree);
        for (file, test) in tree.files {
            *files.entry(file).or_insert(true) &= test;
        }
    }
    checked.look_at_files(workspace, &dir, rooms, &files)?;
    Ok(checked)
}

impl Checked {
    /// Checks the imports of one crate.
    fn look(&mut self, workspace: &Path, dir: &Path, rooms: &Rooms, tree: &Tree) {
        for (path, module) in tree.modules.iter().filter(|(_, module)| !module.test) {
            let Some(items) = &module.items else { continue };
            let shown = module.file.strip_prefix(workspace).unwrap_or(&module.file);
            // A file in no room is reported once, with the files.
            let Ok(from) = key(dir, &module.file).and_then(|key| rooms.of(&key)) else {
                continue;
            };
            for import in imports::of(tree, path, items) {
                let Some(target) = tree.modules.get(&import.module) else {
                    continue;
                };
                let to = key(dir, &target.file).and_then(|key| rooms.of(&key));
                let (Ok(to), false) = (to, target.test) else {
                    continue;
                };
                if to.name == from.name {
                    continue;
                }
                self.imports += 1;
                let at = format!("{}:{}: `{}`", shown.display(), import.line, import.path);
                if import.of_root {
                    self.complaints.push(format!(
                        "{at} in the room `{}` imports from the crate's root; name the module that defines it",
                        from.name
                    ));
                } else if to.line <= from.line {
                    let place = if to.line == from.line {
                        "beside"
                    } else {
                        "above"
                    };
                    self.complaints.push(format!(
                        "{at} in the room `{}` imports from the room `{}`, which is {place} it in docs/ARCHITECTURE.md",
                        from.name, to.name
                    ));
                }
            }
        }
    }

    /// Checks that each file is in a room, and each room has a file.
    fn look_at_files(
        &mut self,
        workspace: &Path,
        dir: &Path,
        rooms: &Rooms,
        files: &BTreeMap<PathBuf, bool>,
    ) -> Result<()> {
        let keys = files
            .iter()
            .filter(|(_, test)| !**test)
            .map(|(file, _)| key(dir, file))
            .collect::<Result<Vec<_>>>()?;
        for key in &keys {
            if let Err(error) = rooms.of(key) {
                self.complaints.push(error.to_string());
            }
        }
        for room in rooms.iter() {
            if !keys.iter().any(|key| room.holds(key)) {
                self.complaints.push(format!(
                    "docs/ARCHITECTURE.md lists the room `{}` of {}, which has no files",
                    room.name, rooms.dir
                ));
            }
        }
        let known: BTreeSet<_> = files.keys().collect();
        for file in Tree::unknown(&known, dir)? {
            self.complaints.push(format!(
                "{} belongs to no crate",
                file.strip_prefix(workspace).unwrap_or(&file).display()
            ));
        }
        Ok(())
    }
}

/// The path of a file below `dir` in the form of room names: without `.rs` and `/mod.rs`.
fn key(dir: &Path, file: &Path) -> Result<String> {
    let path = file
        .strip_prefix(dir)
        .ok()
        .map(|path| path.with_extension(""))
        .ok_or_else(|| Error::new(format!("{} is not in {}", file.display(), dir.display())))?;
    let path = if path.ends_with("mod") {
        path.parent().map(PathBuf::from).unwrap_or_default()
    } else {
        path
    };
    Ok(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::rooms::Block;
    use super::*;

    /// A package of files with their text, and the rooms' lines: the complaints.
    fn complaints(files: &[(&str, &str)], lines: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join("src").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let block = Block {
            argument: "src",
            lines: lines.to_vec(),
        };
        let rooms = Rooms::parse(&block).unwrap();
        check(dir.path(), &rooms).unwrap().complaints
    }

    /// A package of rooms `lib`, `high`, `left right`, `low`, where one has the given text: the one complaint.
    fn complaint(room: &str, text: &str) -> String {
        let mut files = vec![
            (
                "lib.rs",
                "pub mod high; mod left; mod right; mod low; pub use low::A;",
            ),
            ("high.rs", "pub struct H;"),
            ("left.rs", ""),
            ("right.rs", ""),
            ("low.rs", "pub struct A;"),
        ];
        let name = format!("{room}.rs");
        files.retain(|(file, _)| *file != name);
        files.push((&name, text));
        let found = complaints(&files, &["lib", "high", "left right", "low"]);
        match found.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            more => panic!("{more:?}"),
        }
    }

    #[test]
    fn imports_go_down() {
        assert_eq!(complaint("high", "use crate::{left, low::A};"), "");
        assert_eq!(complaint("left", "fn f() -> crate::low::A { todo!() }"), "");
    }

    #[test]
    fn an_import_of_a_room_above_is_named_with_its_place() {
        assert_eq!(
            complaint("low", "\nuse crate::high::H;"),
            "src/low.rs:2: `crate::high::H` in the room `low` imports from the room `high`, which is above it in \
             docs/ARCHITECTURE.md"
        );
    }

    #[test]
    fn every_form_of_an_import_is_seen() {
        for text in [
            "use super::high::H;",
            "use crate::high::*;",
            "use crate::{high};",
            "use crate::{high::{self as h}};",
            "pub use crate::high::H as X;",
            "fn f(_: crate::high::H) {}",
            "impl From<super::high::H> for u8 { fn from(_: super::high::H) -> u8 { 0 } }",
            "fn f() { println!(\"{}\", crate::high::C); }",
            "fn f() { assert!(x, [(super::high::C)]); }",
            "macro_rules! m { () => { $crate::high::C }; }",
            "mod inner { use super::super::high::H; }",
            "mod inner { use self::super::super::high::H; }",
        ] {
            let found = complaint("low", text);
            assert!(
                found.contains("room `low` imports from the room `high`"),
                "{text}: {found}"
            );
        }
    }

    #[test]
    fn rooms_on_one_line_do_not_import_each_other() {
        let found = complaint("left", "use crate::right;");
        assert!(found.contains("is beside it"), "{found}");
    }

    #[test]
    fn the_root_is_for_users() {
        for text in [
            "use crate::A;",
            "fn f(_: super::A) {}",
            "use super::*;",
            "use crate::{A as B};",
        ] {
            let found = complaint("high", text);
            assert!(
                found.contains("imports from the crate's root; name the module that defines it"),
                "{text}: {found}"
            );
        }
    }

    #[test]
    fn test_code_may_import_anything() {
        for text in [
            "#[cfg(test)] mod tests { use crate::high::H; use crate::A; }",
            "#[cfg(test)] use crate::high::H;",
            "#[cfg(all(test, unix))] fn f(_: crate::high::H) {}",
            "struct S; impl S { #[cfg(test)] fn f(_: crate::high::H) {} }",
        ] {
            assert_eq!(complaint("low", text), "", "{text}");
        }
        let files = [
            ("lib.rs", "mod high; mod low;"),
            ("high.rs", ""),
            (
                "low.rs",
                "#[cfg(test)] #[path = \"low_test.rs\"] mod tests;",
            ),
            ("low_test.rs", "mod deeper; use crate::high;"),
            ("deeper.rs", "use crate::high;"),
        ];
        assert_eq!(
            complaints(&files, &["lib", "high", "low"]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_module_is_named_from_where_it_is_declared() {
        let files = [
            ("lib.rs", "mod room;"),
            ("room/mod.rs", "mod high; mod low; fn f() { high::g(); }"),
            ("room/high.rs", "pub fn g() {}"),
            ("room/low.rs", "use super::high::g;"),
        ];
        // As one room all is well; as two with the parent lowest, both names of `high` go up.
        assert_eq!(complaints(&files, &["lib", "room"]), Vec::<String>::new());
        let found = complaints(&files, &["lib", "room/high", "room/low", "room"]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("room/mod.rs:1: `high::g`"), "{found:?}");
        assert!(
            found[1].contains("room/low.rs:1: `super::high::g`"),
            "{found:?}"
        );
    }

    #[test]
    fn files_without_a_room_and_rooms_without_a_file_are_named() {
        let files = [
            ("lib.rs", "mod one; mod two;"),
            ("one.rs", ""),
            ("two.rs", ""),
        ];
        assert_eq!(
            complaints(&files, &["lib", "one", "three"]),
            [
                "src/two.rs belongs to no room of docs/ARCHITECTURE.md",
                "docs/ARCHITECTURE.md lists the room `three` of src, which has no files"
            ]
        );
        let files = [("lib.rs", "mod one;"), ("one.rs", ""), ("lost.rs", "")];
        assert_eq!(
            complaints(&files, &["lib", "one"]),
            ["src/lost.rs belongs to no crate"]
        );
    }

    #[test]
    fn a_program_beside_the_library_is_a_crate_of_its_own() {
        let files = [
            ("lib.rs", "pub mod low;"),
            ("main.rs", "mod cli; fn main() { cli::run(); }"),
            ("cli.rs", "use super::main; use name::low;"),
            ("low.rs", ""),
        ];
        let found = complaints(&files, &["main", "cli", "lib", "low"]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("cli.rs:1: `super::main`"), "{found:?}");
    }
}
