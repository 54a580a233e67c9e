//! A WebSocket and its channels as a hostile client sends them: no panic, and the same bytes however they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rrun_cri::streaming::channels::{Channels, Piece};
use rrun_cri::streaming::websocket::{Event, Parser};

fuzz_target!(|input: &[u8]| {
    let Some((head, bytes)) = input.split_first() else { return };
    for (base64, half_close) in [(false, false), (false, true), (true, false)] {
        let whole = told(bytes, bytes.len().max(1), base64, half_close);
        let cut = told(bytes, usize::from(*head).max(1), base64, half_close);
        // A message that is no base64 may be given up sooner or later.
        if !base64 {
            assert_eq!(cut, whole);
        }
    }
});

/// Bytes by channel, ends, and how many pings and closes.
fn told(bytes: &[u8], step: usize, base64: bool, half_close: bool) -> (Vec<Vec<u8>>, Vec<u8>, usize) {
    let (mut parser, mut channels) = (Parser::default(), Channels::new(base64, half_close));
    let (mut data, mut ends, mut controls) = (vec![Vec::new(); 256], Vec::new(), 0);
    let mut bytes = bytes.to_vec();
    for mut piece in bytes.chunks_mut(step) {
        while let Ok(Some(event)) = parser.next(&mut piece) {
            match event {
                Event::Message { bytes, start, end } => match channels.piece(bytes, start, end) {
                    Ok(Some(Piece::Data(channel, bytes))) => data[usize::from(channel)].extend_from_slice(bytes),
                    Ok(Some(Piece::End(channel))) => ends.push(channel),
                    Ok(None) => {}
                    Err(_) => return (data, ends, controls),
                },
                Event::Ping(_) | Event::Close => controls += 1,
            }
        }
    }
    (data, ends, controls)
}
