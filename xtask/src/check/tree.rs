//! Finds the modules of a crate in its sources, as the compiler does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta};

use crate::bail;
use crate::error::{Context, Result};

/// A crate's modules, by their paths from its root, which is the empty path.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) modules: BTreeMap<Vec<String>, Module>,
    /// Every file of a module, and whether it is for tests only.
    pub(super) files: BTreeMap<PathBuf, bool>,
}

/// The file of a module.
struct Found {
    file: PathBuf,
    /// True if the modules that it declares are next to it, not in a directory with its name.
    owns_dir: bool,
}

/// One module.
pub(super) struct Module {
    pub(super) file: PathBuf,
    /// True if it is compiled for tests only.
    pub(super) test: bool,
    /// The content of its file, if it has a separate file.
    pub(super) items: Option<Vec<Item>>,
}

impl Tree {
    /// Reads the crate whose root is `root`.
    ///
    /// # Errors
    /// A file is missing or cannot be parsed.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let found = Found {
            file: root.to_owned(),
            owns_dir: true,
        };
        tree.read_file(&found, Vec::new(), false)?;
        Ok(tree)
    }

    fn read_file(&mut self, found: &Found, path: Vec<String>, test: bool) -> Result<()> {
        let file = &found.file;
        let text =
            fs::read_to_string(file).context(|| format!("cannot read {}", file.display()))?;
        let parsed = syn::parse_file(&text).map_err(|error| {
            let line = error.span().start().line;
            crate::error::Error::new(format!("{}:{line}: {error}", file.display()))
        })?;
        let test = test || is_test(&parsed.attrs);
        let only_tests = self.files.entry(file.to_owned()).or_insert(test);
        *only_tests &= test;
        self.read_items(found, &path, &[], &parsed.items, test)?;
        let items = Some(parsed.items);
        let file = file.clone();
        self.modules.insert(path, Module { file, test, items });
        Ok(())
    }

    /// `inline` lists the inline modules around `items` in the file.
    fn read_items(
        &mut self,
        file: &Found,
        path: &[String],
        inline: &[String],
        items: &[Item],
        test: bool,
    ) -> Result<()> {
        for item in items {
            let Item::Mod(module) = item else { continue };
            let name = module.ident.to_string();
            let test = test || is_test(&module.attrs);
            let path = join(path, &name);
            let Some((_, content)) = &module.content else {
                let found = find(file, inline, module)?;
                self.read_file(&found, path, test)?;
                continue;
            };
            self.read_items(file, &path, &join(inline, &name), content, test)?;
            let file = file.file.clone();
            let items = None;
            self.modules.insert(path, Module { file, test, items });
        }
        Ok(())
    }

    /// The files below `dir` that belong to no module.
    pub(super) fn unknown(files: &BTreeSet<&PathBuf>, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut unknown = Vec::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            let entries =
                fs::read_dir(&dir).context(|| format!("cannot list {}", dir.display()))?;
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") && !files.contains(&path) {
                    unknown.push(path);
                }
            }
        }
        unknown.sort();
        Ok(unknown)
    }
}

pub(super) fn join(path: &[String], name: &str) -> Vec<String> {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

/// The file of a module that is declared in `file`.
fn find(file: &Found, inline: &[String], module: &ItemMod) -> Result<Found> {
    let Found { file, owns_dir } = file;
    let dir = file.parent().unwrap_or(Path::new("."));
    let name = module.ident.to_string();
    if let Some(path) = path_attribute(&module.attrs) {
        if !inline.is_empty() {
            bail!(
                "{}: `#[path]` of {name} is in an inline module, which this check does not support",
                file.display()
            );
        }
        return Ok(Found {
            file: dir.join(path),
            owns_dir: true,
        });
    }
    let mut dir = if *owns_dir {
        dir.to_owned()
    } else {
        file.with_extension("")
    };
    dir.extend(inline);
    let candidates = [
        (dir.join(format!("{name}.rs")), false),
        (dir.join(&name).join("mod.rs"), true),
    ];
    match candidates.into_iter().find(|(path, _)| path.is_file()) {
        Some((file, owns_dir)) => Ok(Found { file, owns_dir }),
        None => bail!(
            "{}: no file for its module {name} in {}",
            file.display(),
            dir.display()
        ),
    }
}

fn path_attribute(attrs: &[Attribute]) -> Option<String> {
    attrs.iter().find_map(|attr| match &attr.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(ExprLit {
                lit: Lit::Str(text),
                ..
            }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}

/// True if attributes have `cfg(test)`, alone or as a part of `all`.
pub(super) fn is_test(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| match &attr.meta {
        Meta::List(list) if list.path.is_ident("cfg") => list
            .parse_args::<Meta>()
            .is_ok_and(|meta| needs_test(&meta)),
        _ => false,
    })
}

fn needs_test(meta: &Meta) -> bool {
    match meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") => list
            .parse_args_with(syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated)
            .is_ok_and(|parts| parts.iter().any(needs_test)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_code_is_told_by_cfg() {
        for (code, expected) in [
            ("#[cfg(test)] mod a;", true),
            ("#[cfg(all(test, unix))] mod a;", true),
            ("#[cfg(any(test, unix))] mod a;", false),
            ("#[cfg(not(test))] mod a;", false),
            ("#[cfg(unix)] mod a;", false),
        ] {
            let module: ItemMod = syn::parse_str(code).unwrap();
            assert_eq!(is_test(&module.attrs), expected, "{code}");
        }
    }

    #[test]
    fn a_missing_module_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("lib.rs");
        fs::write(&root, "mod absent;").unwrap();
        let error = Tree::read(&root).err().unwrap().to_string();
        assert!(error.contains("absent"), "{error}");
    }
}
