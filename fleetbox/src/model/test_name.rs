//! Names for the VMs of tests.

/// Maximum characters of the test's path in a name. With the random part and a member's number, a
/// name stays below the 63 characters of a DNS label.
const STEM: usize = 46;

/// A name for the VM or cluster of the test with this path: as much of the end of the path as fits,
/// and a random part, so that no other test, process or earlier run has the same name.
pub(crate) fn for_test(path: &str) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{}-{}", stem(path), &unique[..8])
}

/// A name for the VM of the current test. Test harnesses name the thread after the test.
pub(crate) fn of_this_thread() -> String {
    let thread = std::thread::current();
    let path = thread.name().filter(|name| *name != "main");
    for_test(path.unwrap_or_default())
}

/// The readable part of a name.
fn stem(path: &str) -> String {
    let mut stem = String::new();
    for part in path.split("::") {
        // Cut off the closures within the function.
        if part.starts_with('{') {
            continue;
        }
        for c in part.chars().chain(['-']) {
            if c.is_ascii_alphanumeric() {
                stem.push(c.to_ascii_lowercase());
            } else if !stem.is_empty() && !stem.ends_with('-') {
                stem.push('-');
            }
        }
    }
    let stem = stem.trim_end_matches('-');
    // The text is all ASCII.
    let stem = match stem.len().checked_sub(STEM) {
        Some(excess) if excess > 0 => {
            let end = &stem[excess..];
            // Keep whole words, unless there is only one.
            end.split_once('-').map_or(end, |(_, words)| words)
        }
        _ => stem,
    };
    let stem = stem.trim_matches('-');
    if stem.is_empty() {
        "test".to_owned()
    } else {
        stem.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::Name;

    #[test]
    fn names_show_the_end_of_the_path() {
        for (path, expected) in [
            ("app::net::tests::answers", "app-net-tests-answers"),
            ("app::boots::{{closure}}::{{closure}}", "app-boots"),
            ("it's_Ünicode", "it-s-nicode"),
            ("", "test"),
            ("::_::", "test"),
            ("main", "main"),
            (
                "a_crate::with_a_long_path::of_modules::and_a_function_of_many_words",
                "path-of-modules-and-a-function-of-many-words",
            ),
            (&"x".repeat(80), &"x".repeat(STEM)),
        ] {
            assert_eq!(stem(path), expected, "{path}");
            let name = for_test(path);
            let name = Name::new(name).unwrap();
            assert!(name.member(200).is_ok(), "{name}");
        }
    }

    #[test]
    fn two_names_of_one_test_differ() {
        let names: std::collections::BTreeSet<_> = (0..100).map(|_| for_test("a::b")).collect();
        assert_eq!(names.len(), 100);
    }
}
