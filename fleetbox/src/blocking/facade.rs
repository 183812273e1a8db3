//! Macros that generate the methods of the blocking types from those of the asynchronous types.

/// Methods that run the asynchronous method of the same name and wait for it. If a function is named, it converts the
/// result into the blocking type.
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

/// Methods that return a value without waiting.
macro_rules! values {
    ($of:literal: $(fn $name:ident() -> $result:ty;)*) => {$(
        #[doc = concat!("See [`crate::", $of, "::", stringify!($name), "`].")]
        pub fn $name(&self) -> $result {
            self.0.$name()
        }
    )*};
}

/// Methods that set an option of a builder.
macro_rules! options {
    ($of:literal: $(fn $name:ident($($arg:ident: $type:ty),*);)*) => {$(
        #[doc = concat!("See [`crate::", $of, "::", stringify!($name), "`].")]
        pub fn $name(self, $($arg: $type),*) -> Self {
            Self(self.0.$name($($arg),*))
        }
    )*};
}

pub(super) use {options, values, waits};
