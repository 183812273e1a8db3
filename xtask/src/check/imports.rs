//! Finds the imports of a module: paths, `use` trees, and paths in the arguments of macros.

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ItemMod, ItemUse, Macro, TraitItem, UseTree, Visibility};

use super::tree::{Tree, is_test, join};

/// A path that leads to another module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Import {
    pub(super) line: usize,
    /// The path in the source, such as `super::store::Lock`.
    pub(super) path: String,
    /// The module that it leads to.
    pub(super) module: Vec<String>,
    /// True if it names an item of the crate's root that is not a module.
    pub(super) of_root: bool,
}

/// The imports of the module at `path`, including inline modules, without test code.
pub(super) fn of(tree: &Tree, path: &[String], items: &[Item]) -> Vec<Import> {
    let mut visitor = Visitor {
        tree,
        module: path.to_vec(),
        found: Vec::new(),
    };
    for item in items {
        visitor.visit_item(item);
    }
    visitor.found.sort();
    visitor.found.dedup();
    visitor.found
}

struct Visitor<'t> {
    tree: &'t Tree,
    module: Vec<String>,
    found: Vec<Import>,
}

impl Visitor<'_> {
    fn add(&mut self, segments: &[String], line: usize) {
        let Some(first) = segments.first() else {
            return;
        };
        let mut rest = segments.iter().peekable();
        let mut module = match first.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.module.clone(),
            // What a module declares can be named as it is.
            child if self.tree.modules.contains_key(&join(&self.module, child)) => {
                self.module.clone()
            }
            _ => return,
        };
        if first == "crate" || first == "self" {
            rest.next();
        }
        while rest.next_if(|segment| *segment == "super").is_some() {
            module.pop();
        }
        while let Some(child) = rest.next_if(|s| self.tree.modules.contains_key(&join(&module, s)))
        {
            module.push(child.clone());
        }
        self.found.push(Import {
            line,
            path: segments.join("::"),
            of_root: module.is_empty() && rest.peek().is_some(),
            module,
        });
    }

    fn add_use(&mut self, prefix: &[String], tree: &UseTree) {
        let line = tree.span().start().line;
        match tree {
            UseTree::Path(path) => {
                self.add_use(&join(prefix, &path.ident.to_string()), &path.tree);
            }
            UseTree::Group(group) => group.items.iter().for_each(|t| self.add_use(prefix, t)),
            UseTree::Glob(_) => self.add(&join(prefix, "*"), line),
            UseTree::Name(name) if name.ident == "self" => self.add(prefix, line),
            UseTree::Name(name) => self.add(&join(prefix, &name.ident.to_string()), line),
            UseTree::Rename(name) if name.ident == "self" => self.add(prefix, line),
            UseTree::Rename(name) => self.add(&join(prefix, &name.ident.to_string()), line),
        }
    }

    /// Finds paths of at least two parts in a macro's arguments.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        // How many of the two colons after a part have been seen.
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) if colons == 2 => {
                    path.push(ident.to_string());
                    colons = 0;
                    continue;
                }
                _ => {}
            }
            if path.len() > 1 {
                self.add(&path, line);
            }
            path.clear();
            colons = 0;
            match token {
                TokenTree::Ident(ident) => {
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                }
                TokenTree::Group(group) => self.add_tokens(group.stream()),
                _ => {}
            }
        }
        if path.len() > 1 {
            self.add(&path, line);
        }
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attrs = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !is_test(attrs) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        match item {
            TraitItem::Fn(item) if is_test(&item.attrs) => {}
            _ => visit::visit_trait_item(self, item),
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        // A module in a file of its own is looked at by itself.
        if module.content.is_some() {
            self.module.push(module.ident.to_string());
            visit::visit_item_mod(self, module);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            self.add_use(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            let segments: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
            self.add(&segments, path.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        visit::visit_macro(self, call);
        self.add_tokens(call.tokens.clone());
    }

    /// Skips `pub(in crate::vm)`, which is not an import.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
