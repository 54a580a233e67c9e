//! As much of Protocol Buffers as the conversation with CRIU takes: numbers, texts, nested messages.

/// A message being written.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A field that holds a number, an enumeration's value or a truth value.
    pub(super) fn number(&mut self, field: u32, value: i64) {
        self.varint(u64::from(field) << 3);
        // A negative number is sign-extended to ten bytes, as the format has it.
        self.varint(value as u64);
    }

    /// A switch; left out where it is off, which is what CRIU takes it for then.
    pub(super) fn switch(&mut self, field: u32, on: bool) {
        if on {
            self.number(field, 1);
        }
    }

    /// A text, or a nested message.
    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A nested message.
    pub(super) fn nested(&mut self, field: u32, message: &Message) {
        self.bytes(field, &message.0);
    }

    /// What is sent.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A field of a message that was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number, an enumeration's value or a truth value.
    Number(i64),
    /// A text or a nested message.
    Bytes(&'a [u8]),
}

/// The fields of a message in their order; ends early where it is damaged.
pub(super) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u32, Value<'_>)> {
    std::iter::from_fn(move || {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)? as i64),
            kind @ (1 | 2 | 5) => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    _ => usize::try_from(varint(&mut bytes)?).ok()?,
                };
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        Some((u32::try_from(key >> 3).ok()?, value))
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut inner = Message::default();
        inner.bytes(1, b"post-dump");
        let mut message = Message::default();
        message.number(1, 6);
        message.switch(2, true);
        message.switch(3, false);
        message.nested(5, &inner);
        message.number(7, -17);
        message.number(20, 300);
        let read: Vec<_> = fields(message.as_bytes()).collect();
        let wanted = [
            (1, Value::Number(6)),
            (2, Value::Number(1)),
            (5, Value::Bytes(inner.as_bytes())),
            (7, Value::Number(-17)),
            (20, Value::Number(300)),
        ];
        assert_eq!(read, wanted);
        assert_eq!(&message.as_bytes()[..4], [8, 6, 16, 1], "the format's own bytes");
    }

    #[test]
    fn a_damaged_message_ends() {
        assert_eq!(fields(&[0x0a, 5, 1]).count(), 0);
        assert_eq!(fields(&[0xff; 20]).count(), 0);
        assert_eq!(fields(&[8, 1, 0x0b]).count(), 1);
    }
}
