//! Text of strangers, as it may be kept in a log or shown in a terminal.

/// At most `longest` characters of a text, none of which steers a terminal.
pub(crate) fn printable(text: &str, longest: usize) -> String {
    text.chars()
        .take(longest)
        .map(|character| {
            if character.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            }
        })
        .collect()
}
