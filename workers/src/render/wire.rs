//! How a worker and its render process speak: four lengths, then as many texts. Pure.

/// What is asked or answered: each text may be absent.
pub(super) type Texts = [Option<Vec<u8>>; 4];

/// What a process says first, so that another program is not taken for one.
pub(super) const GREETING: [u8; 8] = *b"render 1";
/// Length of what stands in front of the texts.
pub(super) const HEAD: usize = 16;
/// More than two bodies, a subject and variables can have.
const OCTETS_MAX: usize = 64 * 1024 * 1024;
const ABSENT: u32 = u32::MAX;

/// Lengths of the texts that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head([Option<usize>; 4]);

/// One message.
pub(super) fn encode(texts: [Option<&[u8]>; 4]) -> Vec<u8> {
    let octets = texts.iter().flatten().map(|text| text.len()).sum::<usize>();
    let mut out = Vec::with_capacity(HEAD + octets);
    for text in texts {
        let length = text.map_or(ABSENT, |text| u32::try_from(text.len()).unwrap_or(ABSENT));
        out.extend_from_slice(&length.to_be_bytes());
    }
    texts.iter().flatten().for_each(|text| out.extend_from_slice(text));
    out
}

impl Head {
    /// Nothing where more would follow than there can be.
    pub(super) fn read(octets: [u8; HEAD]) -> Option<Self> {
        let mut lengths = [None; 4];
        for (length, four) in lengths.iter_mut().zip(octets.chunks_exact(4)) {
            let value = u32::from_be_bytes(four.try_into().ok()?);
            *length = (value != ABSENT).then_some(usize::try_from(value).ok()?);
        }
        let head = Self(lengths);
        (head.octets() <= OCTETS_MAX).then_some(head)
    }

    /// How much follows.
    pub(super) fn octets(self) -> usize {
        self.0.iter().flatten().sum()
    }

    /// Cuts what followed.
    pub(super) fn texts(self, mut octets: Vec<u8>) -> Texts {
        let mut texts = [const { None }; 4];
        for (text, length) in texts.iter_mut().zip(self.0).rev() {
            *text = length.map(|length| octets.split_off(octets.len().saturating_sub(length)));
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(message: &[u8]) -> Option<Head> {
        Head::read(message[..HEAD].try_into().unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        for texts in [[None, None, None, None], [Some("a"), None, Some(""), Some("bcd")], [None, Some("x"), None, None]]
        {
            let message = encode(texts.map(|text| text.map(str::as_bytes)));
            let head = head_of(&message).unwrap();
            assert_eq!(head.octets(), message.len() - HEAD);
            let read = head.texts(message[HEAD..].to_vec());
            assert_eq!(read, texts.map(|text| text.map(|text| text.as_bytes().to_vec())));
        }
    }

    #[test]
    fn more_than_there_can_be_is_refused() {
        let mut message = encode([Some(b"a"), None, None, None]);
        message[0] = 0x7f;
        assert_eq!(head_of(&message), None);
    }
}
