//! Header blocks: names and values, compressed by one zlib stream per direction and connection, with the dictionary that
//! SPDY/3 prescribes. What comes in is inflated, every block in order; what goes out is a few bytes and is stored.

use std::sync::LazyLock;

use flate2::{Decompress, FlushDecompress};

use super::frame::Error;

/// Most bytes that one header block may inflate to.
pub const BLOCK_LIMIT: usize = 1 << 20;
/// Most headers in one block.
pub const COUNT_LIMIT: u32 = 1000;
/// Adler-32 of the dictionary, by which a zlib stream names it.
pub const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

/// The words of the dictionary (SPDY/3, section 2.6.10.1): each stands after its length as 32 bits.
const WORDS: &str = "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,\
    accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,content-language,\
    content-length,content-location,content-md5,content-range,content-type,date,etag,expect,expires,from,host,if-match,\
    if-modified-since,if-none-match,if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,\
    proxy-authenticate,proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,\
    user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,\
    keep-alive,origin";

/// What follows the words.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary, 1423 bytes.
pub static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(',') {
        bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
});

/// The headers of one stream, names in lower case.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of the first header with this name (lower case). Several values of one name are joined by NUL.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// All names and values, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn parse(mut block: &[u8]) -> Result<Headers, Error> {
        let count = take_u32(&mut block)?;
        if count > COUNT_LIMIT {
            return Err(Error::Headers("too many headers"));
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            headers.push((take_text(&mut block)?, take_text(&mut block)?));
        }
        if !block.is_empty() {
            return Err(Error::Headers("bytes after the last header"));
        }
        Ok(Headers(headers))
    }
}

/// The zlib stream of the blocks that come in.
pub struct Inflater {
    zlib: Decompress,
    block: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Inflater { zlib: Decompress::new(true), block: Vec::new() }
    }
}

impl Inflater {
    /// Inflates and parses the next block. After an error the connection is of no use.
    pub fn headers(&mut self, mut compressed: &[u8]) -> Result<Headers, Error> {
        self.block.clear();
        loop {
            if self.block.len() == self.block.capacity() {
                if self.block.len() >= BLOCK_LIMIT {
                    return Err(Error::Headers("the header block is too long"));
                }
                self.block.reserve(4096);
            }
            let before = (self.zlib.total_in(), self.zlib.total_out());
            let result = self.zlib.decompress_vec(compressed, &mut self.block, FlushDecompress::Sync);
            compressed = compressed.get((self.zlib.total_in() - before.0) as usize..).unwrap_or_default();
            match result {
                Ok(_) if before == (self.zlib.total_in(), self.zlib.total_out()) => break,
                Ok(_) => {}
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    self.zlib.set_dictionary(&DICTIONARY).map_err(|_| Error::Headers("zlib refuses the dictionary"))?;
                }
                Err(_) => return Err(Error::Headers("not deflated with SPDY/3's dictionary")),
            }
        }
        if !compressed.is_empty() {
            return Err(Error::Headers("bytes after the end of the zlib stream"));
        }
        let headers = Headers::parse(&self.block)?;
        if self.block.capacity() > 64 << 10 {
            self.block = Vec::new();
        }
        Ok(headers)
    }
}

/// The zlib stream of the blocks that go out. They are stored, not deflated: a reply has no header at all, and the state
/// of a compressor is a quarter of a megabyte per connection.
#[derive(Debug, Default)]
pub struct Storer {
    begun: bool,
}

impl Storer {
    /// The next block with these headers (names in lower case).
    pub fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::new();
        if !self.begun {
            self.begun = true;
            // RFC 1950: deflate with a 32 KiB window, FDICT, and the check bits of both bytes.
            block.extend_from_slice(&[0x78, 0x20]);
            block.extend_from_slice(&DICTIONARY_ID.to_be_bytes());
        }
        // RFC 1951, 3.2.4: stored blocks, then an empty one, which is what a sync flush ends with.
        for piece in plain.chunks(0xffff).chain([&[][..]]) {
            let length = piece.len() as u16;
            block.push(0);
            block.extend_from_slice(&length.to_le_bytes());
            block.extend_from_slice(&(!length).to_le_bytes());
            block.extend_from_slice(piece);
        }
        block
    }
}

fn take<'a>(block: &mut &'a [u8], length: usize) -> Result<&'a [u8], Error> {
    let (taken, rest) = block.split_at_checked(length).ok_or(Error::Headers("the header block is cut short"))?;
    *block = rest;
    Ok(taken)
}

fn take_u32(block: &mut &[u8]) -> Result<u32, Error> {
    let bytes = take(block, 4)?;
    Ok(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

fn take_text(block: &mut &[u8]) -> Result<String, Error> {
    let length = take_u32(block)? as usize;
    String::from_utf8(take(block, length)?.to_vec()).map_err(|_| Error::Headers("a header is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// A compressor as other implementations have it.
    fn deflater() -> Compress {
        let mut zlib = Compress::new(Compression::best(), true);
        assert_eq!(zlib.set_dictionary(&DICTIONARY).unwrap(), DICTIONARY_ID);
        zlib
    }

    fn deflate(zlib: &mut Compress, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + 1024);
        zlib.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut out = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(n, v)| [n, v]) {
            out.extend((text.len() as u32).to_be_bytes());
            out.extend(text.as_bytes());
        }
        out
    }

    #[test]
    fn dictionary_is_the_published_one() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, DICTIONARY_ID);
    }

    #[test]
    fn blocks_of_one_stream_inflate_in_order() {
        let (mut zlib, mut inflater) = (deflater(), Inflater::default());
        for kind in ["error", "stdin", "stdout", "stderr", "resize"] {
            let block = deflate(&mut zlib, &plain(&[("streamtype", kind), ("port", "80")]));
            let headers = inflater.headers(&block).unwrap();
            assert_eq!((headers.get("streamtype"), headers.get("port"), headers.get("host")), (Some(kind), Some("80"), None));
        }
    }

    #[test]
    fn stored_blocks_read_back() {
        let (mut storer, mut inflater) = (Storer::default(), Inflater::default());
        let long = "x".repeat(200_000);
        for headers in [&[][..], &[("a", "b")], &[("long", long.as_str()), ("c", "")], &[]] {
            let read = inflater.headers(&storer.block(headers)).unwrap();
            assert_eq!(read.iter().collect::<Vec<_>>(), headers);
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_held() {
        let bomb = deflate(&mut deflater(), &vec![0; 64 << 20]);
        let mut inflater = Inflater::default();
        assert!(inflater.headers(&bomb).is_err());
        assert!(inflater.block.capacity() <= BLOCK_LIMIT + 8192, "{}", inflater.block.capacity());
    }

    #[test]
    fn what_is_not_a_block_is_refused() {
        let mut many = plain(&[]);
        many[..4].copy_from_slice(&5000u32.to_be_bytes());
        for (what, bytes) in [
            ("plain", plain(&[("a", "b")])),
            ("empty", Vec::new()),
            ("count without headers", deflate(&mut deflater(), &7u32.to_be_bytes())),
            ("too many", deflate(&mut deflater(), &many)),
            ("more than counted", deflate(&mut deflater(), &[plain(&[("a", "b")]), vec![0]].concat())),
            ("length past the end", deflate(&mut deflater(), &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a'])),
            ("not UTF-8", deflate(&mut deflater(), &[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0])),
        ] {
            assert!(Inflater::default().headers(&bytes).is_err(), "{what}");
        }
    }
}
