//! Messages as bytes.

/// A message that can be sent and read.
pub(super) trait Message: Sized {
    /// Its bytes.
    fn encode(&self) -> Vec<u8>;
    /// The message of these bytes; the error is a text.
    fn decode(bytes: &[u8]) -> Result<Self, String>;
}

impl<T: prost::Message + Default> Message for T {
    fn encode(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        <T as prost::Message>::decode(bytes).map_err(|error| error.to_string())
    }
}
