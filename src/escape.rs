//! A payload as one line of text: what `difato listen` prints.

use std::fmt::Write;

/// Text stands as it is; each byte of a control character, and each that is not UTF-8, becomes
/// `\xNN`, and a backslash `\\`. So the line holds no line break, and no two payloads look alike.
pub(crate) fn escape(payload: &[u8]) -> String {
    let mut text = String::with_capacity(payload.len());
    for chunk in payload.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => hex(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => text.push(c),
            }
        }
        hex(&mut text, chunk.invalid());
    }
    text
}

fn hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stands_as_it_is_and_the_rest_is_spelled_out() {
        let cases: [(&[u8], &str); 7] = [
            (b"hello, world", "hello, world"),
            ("gr\u{fc}n \u{1f980}".as_bytes(), "gr\u{fc}n \u{1f980}"),
            (b"", ""),
            (b"a\nb\x1b[1m\x7f", "a\\x0ab\\x1b[1m\\x7f"),
            (b"C:\\x0a", "C:\\\\x0a"),
            (b"\xff\x00ok\xc3", "\\xff\\x00ok\\xc3"),
            ("\u{85}".as_bytes(), "\\xc2\\x85"),
        ];
        for (payload, text) in cases {
            assert_eq!(escape(payload), text);
        }
    }
}
