//! The options in the attribute's parentheses.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens as _, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{Error, Expr, ExprLit, Ident, Lit, Result, Token};

/// Names of the options, as messages list them.
const NAMES: &str = "image, cpus, memory, disk, user, boot_timeout, nodes, configure";

/// One option: `key = value`.
struct Entry {
    key: Ident,
    value: Expr,
}

impl Parse for Entry {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let key: Ident = input.parse()?;
        if !input.peek(Token![=]) {
            return Err(Error::new(
                key.span(),
                format!("write `{key} = …`; the options are {NAMES}"),
            ));
        }
        input.parse::<Token![=]>()?;
        Ok(Self {
            key,
            value: input.parse()?,
        })
    }
}

/// All options, each as a call of a builder's method.
#[derive(Default)]
pub(crate) struct Options {
    /// Calls such as `.cpus(2)`.
    pub(crate) calls: TokenStream,
    /// The function that changes the builder last.
    pub(crate) configure: Option<Expr>,
    /// The place of `nodes`, if it is given.
    pub(crate) nodes: Option<Span>,
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let entries = Punctuated::<Entry, Token![,]>::parse_terminated(input)?;
        let mut options = Self::default();
        let mut seen: Vec<String> = Vec::new();
        for Entry { key, value } in entries {
            let name = key.to_string();
            if seen.contains(&name) {
                return Err(Error::new(
                    key.span(),
                    format!("`{name}` is given more than once"),
                ));
            }
            let span = value.span();
            // Errors about a value should point at the value, and those about a call at the option.
            let call = |value: TokenStream| quote_spanned!(key.span()=> .#key(#value));
            match name.as_str() {
                "image" | "user" => {
                    text(&value, &name)?;
                    options.calls.extend(call(value.into_token_stream()));
                }
                "cpus" => {
                    number(&value, "cpus")?;
                    options.calls.extend(call(value.into_token_stream()));
                }
                "memory" | "disk" => options.calls.extend(call(size(value)?)),
                "boot_timeout" => {
                    let seconds = is_number(&value);
                    let value = if seconds {
                        quote_spanned!(span=> ::core::time::Duration::from_secs(#value))
                    } else {
                        value.into_token_stream()
                    };
                    options.calls.extend(call(value));
                }
                "nodes" => {
                    number(&value, "nodes")?;
                    options.nodes = Some(key.span());
                    options
                        .calls
                        .extend(quote_spanned!(key.span()=> .count(#value)));
                }
                "configure" => options.configure = Some(value),
                other => {
                    return Err(Error::new(
                        key.span(),
                        format!("unknown option `{other}`; the options are {NAMES}"),
                    ));
                }
            }
            seen.push(name);
        }
        Ok(options)
    }
}

fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit),
        _ => None,
    }
}

fn is_number(value: &Expr) -> bool {
    matches!(literal(value), Some(Lit::Int(_)))
}

/// Refuses a literal that is not text. The compiler checks the type of any other expression.
fn text(value: &Expr, name: &str) -> Result<()> {
    match literal(value) {
        Some(Lit::Str(_)) | None => Ok(()),
        Some(_) => Err(Error::new(
            value.span(),
            format!("`{name}` must be text: write {name} = \"…\""),
        )),
    }
}

fn number(value: &Expr, name: &str) -> Result<()> {
    let wrong = |why: &str| Err(Error::new(value.span(), format!("`{name}` must be {why}")));
    match literal(value) {
        None => Ok(()),
        Some(Lit::Int(number)) => match number.base10_parse::<u32>() {
            Ok(0) => wrong("at least 1"),
            Ok(_) => Ok(()),
            Err(_) => wrong("smaller"),
        },
        Some(_) => wrong("a number, without quotes"),
    }
}

/// A quoted size is checked when the test is compiled.
fn size(value: Expr) -> Result<TokenStream> {
    let span = value.span();
    match literal(&value) {
        None => Ok(value.into_token_stream()),
        Some(Lit::Str(text)) => Ok(quote_spanned! {span=>
            const { ::fleetbox::Size::literal(#text) }
        }),
        Some(_) => Err(Error::new(
            span,
            "a size needs a unit and quotes: write \"1GiB\"",
        )),
    }
}
