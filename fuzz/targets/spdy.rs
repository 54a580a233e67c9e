//! SPDY as a hostile client sends it: no panic, no unbounded memory, and the same frames however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rrun_cri::streaming::spdy::frame::{self, Error, Frame, Parser};
use rrun_cri::streaming::spdy::headers::{Headers, Storer};

fuzz_target!(|input: &[u8]| {
    let Some((step, bytes)) = input.split_first() else { return };
    let whole = told(bytes, bytes.len().max(1));
    assert_eq!(told(bytes, usize::from(*step).max(1)), whole);
    // What was understood can be said again and is understood the same.
    let mut storer = Storer::default();
    for (stream, headers) in whole.0 {
        let pairs = headers.iter().collect::<Vec<_>>();
        let again = frame::open(stream, &pairs, false, &mut storer);
        let mut parser = Parser::default();
        if storer_is_fresh(&again) {
            assert!(matches!(parser.next(&mut &again[..]), Ok(Some(Frame::Open { headers: read, .. })) if read == headers));
        }
    }
});

/// The first block of a connection, which a new parser can read.
fn storer_is_fresh(open: &[u8]) -> bool {
    open.get(18..20) == Some(&[0x78, 0x20])
}

type Told = (Vec<(u32, Headers)>, Vec<(u32, u64, bool)>, Option<Error>);

/// Streams that were opened, bytes and ends of streams in their order, and the error at the end.
fn told(bytes: &[u8], step: usize) -> Told {
    let (mut parser, mut opened, mut data) = (Parser::default(), Vec::new(), Vec::<(u32, u64, bool)>::new());
    for mut piece in bytes.chunks(step) {
        loop {
            match parser.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(Frame::Open { stream, headers, .. })) => opened.push((stream, headers)),
                Ok(Some(Frame::Data { stream, bytes, fin })) => match data.last_mut() {
                    Some(last) if last.0 == stream && !last.2 => {
                        last.1 += bytes.len() as u64;
                        last.2 = fin;
                    }
                    _ => data.push((stream, bytes.len() as u64, fin)),
                },
                Ok(Some(_)) => {}
                Err(error) => return (opened, data, Some(error)),
            }
        }
    }
    (opened, data, None)
}
