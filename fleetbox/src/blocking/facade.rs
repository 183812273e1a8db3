//! What writes the methods of the blocking types, which are those of the asynchronous ones.

/// Methods that run the asynchronous one of the same name, wait for its end and, where a function is
/// named, make of the result what this module has for it.
macro_rules! waits {
    ($of:literal: $(fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty $(= $wrap:expr)?;)*) => {$(
        #[doc = concat!("See [`crate::", $of, "::", stringify!($name), "`].\n\n# Errors\nThose of the asynchronous method.")]
        pub fn $name(&self, $($arg: $type),*) -> Result<$result> {
            let result = run(self.0.$name($($arg),*))?;
            $(let result = $wrap(result)?;)?
            Ok(result)
        }
    )*};
}

/// Methods that give a value.
macro_rules! values {
    ($of:literal: $(fn $name:ident() -> $result:ty;)*) => {$(
        #[doc = concat!("See [`crate::", $of, "::", stringify!($name), "`].")]
        pub fn $name(&self) -> $result {
            self.0.$name()
        }
    )*};
}

/// Options of a builder.
macro_rules! options {
    ($of:literal: $(fn $name:ident($($arg:ident: $type:ty),*);)*) => {$(
        #[doc = concat!("See [`crate::", $of, "::", stringify!($name), "`].")]
        pub fn $name(self, $($arg: $type),*) -> Self {
            Self(self.0.$name($($arg),*))
        }
    )*};
}

pub(super) use {options, values, waits};
