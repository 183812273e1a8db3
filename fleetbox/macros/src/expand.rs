//! The expansion of the attribute: a test function that wraps the user's function.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Attribute, Error, Expr, ExprLit, FnArg, ItemFn, Lit, Meta, Result, Type};

use crate::options::Options;

pub(crate) fn expand(options: TokenStream, function: TokenStream) -> Result<TokenStream> {
    let mut function: ItemFn = syn::parse2(function).map_err(|error| {
        Error::new(
            error.span(),
            format!("#[fleetbox::test] must be on a function: {error}"),
        )
    })?;
    let options: Options = syn::parse2(options)?;
    let subject = subject(&function)?;
    check_signature(&function)?;
    check_nodes(&options, &subject)?;

    let attributes = std::mem::take(&mut function.attrs);
    let visibility = std::mem::replace(&mut function.vis, syn::Visibility::Inherited);
    let name = function.sig.ident.clone();
    let should_panic = should_panic(&attributes)?;
    // Each kind has its own trait, so that mixing them up gives a helpful message.
    let (kind, run) = if function.sig.asyncness.is_some() {
        (format_ident!("Subject"), format_ident!("run"))
    } else {
        (
            format_ident!("BlockingSubject"),
            format_ident!("run_blocking"),
        )
    };
    let calls = &options.calls;
    let mut builder = quote_spanned! {subject.span()=>
        <#subject as ::fleetbox::testing::#kind>::builder()
    };
    builder.extend(quote!(#calls));
    if let Some(configure) = &options.configure {
        builder = quote_spanned! {configure.span()=>
            ::fleetbox::testing::expansion::configure(#builder, #configure)
        };
    }
    Ok(quote! {
        #[::core::prelude::v1::test]
        #(#attributes)*
        #visibility fn #name() {
            #function
            ::fleetbox::testing::expansion::#run(
                ::fleetbox::testing::expansion::Call {
                    path: ::core::concat!(::core::module_path!(), "::", ::core::stringify!(#name)),
                    should_panic: #should_panic,
                },
                #builder,
                #name,
            )
        }
    })
}

/// The type of the function's parameter.
fn subject(function: &ItemFn) -> Result<Type> {
    let wrong = |span| {
        Err(Error::new(
            span,
            "a fleetbox test takes one parameter, its VM or cluster: write `vm: Vm`",
        ))
    };
    let mut inputs = function.sig.inputs.iter();
    match (inputs.next(), inputs.next()) {
        (Some(FnArg::Typed(argument)), None) => match &*argument.ty {
            Type::Reference(reference) => Err(Error::new(
                reference.span(),
                "a fleetbox test takes its VM or cluster by value: write `vm: Vm`",
            )),
            other => Ok(other.clone()),
        },
        (Some(_), Some(second)) => wrong(second.span()),
        (Some(receiver), None) => wrong(receiver.span()),
        (None, _) => wrong(function.sig.ident.span()),
    }
}

fn check_signature(function: &ItemFn) -> Result<()> {
    let signature = &function.sig;
    if !signature.generics.params.is_empty() {
        return Err(Error::new(
            signature.generics.span(),
            "a test cannot have generic parameters",
        ));
    }
    for (span, what) in [
        (signature.constness.map(|it| it.span()), "const"),
        (signature.unsafety.map(|it| it.span()), "unsafe"),
        (signature.abi.as_ref().map(|it| it.span()), "extern"),
    ] {
        if let Some(span) = span {
            return Err(Error::new(span, format!("a test cannot be `{what}`")));
        }
    }
    for attribute in &function.attrs {
        let path = attribute.path();
        if path
            .segments
            .last()
            .is_some_and(|last| last.ident == "test")
        {
            return Err(Error::new(
                path.span(),
                "#[fleetbox::test] already makes this a test: remove this attribute",
            ));
        }
    }
    Ok(())
}

/// `nodes` is required for clusters, and only allowed there. The compiler checks types with other
/// names.
fn check_nodes(options: &Options, subject: &Type) -> Result<()> {
    let Type::Path(path) = subject else {
        return Ok(());
    };
    let Some(last) = path.path.segments.last() else {
        return Ok(());
    };
    match options.nodes {
        Some(span) if last.ident == "Vm" => Err(Error::new(
            span,
            "`nodes` is for a cluster: take a parameter `cluster: Cluster`",
        )),
        None if last.ident == "Cluster" && options.configure.is_none() => Err(Error::new(
            last.ident.span(),
            "the number of members is missing: write `nodes = 3`",
        )),
        _ => Ok(()),
    }
}

/// `Some("part of the message")` for a test that must panic. It must panic even when it is skipped.
fn should_panic(attributes: &[Attribute]) -> Result<TokenStream> {
    let found = attributes
        .iter()
        .find(|attribute| attribute.path().is_ident("should_panic"));
    let Some(attribute) = found else {
        return Ok(quote!(::core::option::Option::None));
    };
    let expected = match &attribute.meta {
        Meta::Path(_) => None,
        Meta::NameValue(pair) => Some(pair.value.clone()),
        Meta::List(list) => {
            let pair: syn::MetaNameValue = list.parse_args()?;
            Some(pair.value)
        }
    };
    let text = match expected {
        Some(Expr::Lit(ExprLit {
            lit: Lit::Str(text),
            ..
        })) => text.value(),
        // The compiler itself refuses anything else.
        _ => String::new(),
    };
    Ok(quote!(::core::option::Option::Some(#text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expansion as text without spaces, or the message.
    fn expansion(options: &str, function: &str) -> Result<String> {
        let tokens = expand(options.parse().unwrap(), function.parse().unwrap())?;
        // It is a function that the compiler can read.
        syn::parse2::<ItemFn>(tokens.clone()).unwrap();
        Ok(tokens.to_string().replace(char::is_whitespace, ""))
    }

    fn message(options: &str, function: &str) -> String {
        expansion(options, function).unwrap_err().to_string()
    }

    const VM: &str = "async fn t(vm: Vm) {}";

    #[test]
    fn options_become_calls() {
        let text = expansion(
            r#"image = "debian-12", cpus = 2, memory = "1GiB", disk = Size::gib(4), boot_timeout = 90"#,
            VM,
        )
        .unwrap();
        for part in [
            "<Vmas::fleetbox::testing::Subject>::builder()",
            r#".image("debian-12")"#,
            ".cpus(2)",
            r#".memory(const{::fleetbox::Size::literal("1GiB")})"#,
            ".disk(Size::gib(4))",
            ".boot_timeout(::core::time::Duration::from_secs(90))",
            "expansion::run(",
            "should_panic:::core::option::Option::None",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn other_attributes_and_the_visibility_stay_with_the_test() {
        let text = expansion(
            "",
            r#"#[ignore = "slow"] #[should_panic(expected = "full")] #[cfg(unix)] pub async fn t(mut vm: Vm) -> Result<(), E> { Ok(()) }"#,
        )
        .unwrap();
        assert!(
            text.starts_with(
                r##"#[::core::prelude::v1::test]#[ignore="slow"]#[should_panic(expected="full")]#[cfg(unix)]pubfnt(){asyncfnt(mutvm:Vm)->Result<(),E>"##
            ),
            "{text}"
        );
        assert!(text.contains(r#"Option::Some("full")"#), "{text}");
        let any = expansion("", "#[should_panic] async fn t(vm: Vm) {}").unwrap();
        assert!(any.contains(r#"Option::Some("")"#), "{any}");
    }

    #[test]
    fn clusters_and_blocking_functions_have_their_own_ways() {
        let cluster = expansion("nodes = 3", "async fn t(c: fleetbox::Cluster) {}").unwrap();
        assert!(cluster.contains(".count(3)"), "{cluster}");
        let blocking = expansion("", "fn t(vm: fleetbox::blocking::Vm) {}").unwrap();
        assert!(
            blocking.contains("BlockingSubject>::builder()"),
            "{blocking}"
        );
        assert!(blocking.contains("expansion::run_blocking("), "{blocking}");
        let configured = expansion("configure = with", "async fn t(c: Cluster) {}").unwrap();
        assert!(
            configured.contains("expansion::configure(<Cluster") && configured.contains(",with)"),
            "{configured}"
        );
    }

    #[test]
    fn mistakes_are_told() {
        for (options, function, part) in [
            ("cpu = 2", VM, "unknown option `cpu`; the options are image"),
            ("cpus", VM, "write `cpus = …`"),
            ("cpus = 1, cpus = 2", VM, "more than once"),
            (r#"cpus = "2""#, VM, "a number, without quotes"),
            ("cpus = 0", VM, "at least 1"),
            ("cpus = 99999999999", VM, "must be smaller"),
            ("image = 12", VM, "`image` must be text"),
            ("memory = 1024", VM, "needs a unit"),
            ("nodes = 3", VM, "`nodes` is for a cluster"),
            ("", "async fn t(c: Cluster) {}", "nodes = 3"),
            ("", "async fn t() {}", "one parameter"),
            ("", "async fn t(a: Vm, b: Vm) {}", "one parameter"),
            ("", "async fn t(&self) {}", "one parameter"),
            ("", "async fn t(vm: &Vm) {}", "by value"),
            (
                "",
                "async fn t<T>(vm: Vm) {}",
                "cannot have generic parameters",
            ),
            ("", "async unsafe fn t(vm: Vm) {}", "cannot be `unsafe`"),
            (
                "",
                "#[tokio::test] async fn t(vm: Vm) {}",
                "already makes this a test",
            ),
            ("", "struct T;", "must be on a function"),
        ] {
            let message = message(options, function);
            assert!(message.contains(part), "{options} {function}: {message}");
        }
    }
}
