//! TensorBoard event files: TFRecord frames around hand-encoded `Event` protocol buffers.
//!
//! A frame is `length u64 LE | masked CRC-32C of the length | data | masked CRC-32C of the data`, the mask being
//! `rotate_right(crc, 15) + 0xa282ead8` (TensorFlow's `record_writer.cc` and `crc32c.h`).
//! An event is `{1: wall_time double, 2: step int64, 3: file_version string | 5: summary}`, a summary is
//! `{1: value}*`, a value `{1: tag string, 2: simple_value float}` (`event.proto`, `summary.proto`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

const VERSION: &str = "brain.Event:2";
const MASK_DELTA: u32 = 0xa282_ead8;
/// Castagnoli's polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const TABLE: [u32; 256] = table();

/// An event file that is being written.
#[derive(Debug)]
pub(crate) struct EventFile {
    out: File,
}

impl EventFile {
    /// Creates `events.out.tfevents.<seconds>.testforge` in `dir`; `time_s` since the Unix epoch.
    pub(crate) fn create(dir: &Path, time_s: f64) -> io::Result<Self> {
        let path = dir.join(format!("events.out.tfevents.{:.3}.testforge", time_s));
        let mut out = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut event = Vec::new();
        double(&mut event, 1, time_s);
        bytes(&mut event, 3, VERSION.as_bytes());
        out.write_all(&frame(&event))?;
        Ok(Self { out })
    }

    /// One event with all `values` of `step`.
    pub(crate) fn scalars(&mut self, time_s: f64, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        self.out.write_all(&frame(&scalar_event(time_s, step, values)))
    }
}

fn scalar_event(time_s: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut v = Vec::new();
        bytes(&mut v, 1, tag.as_bytes());
        float(&mut v, 2, *value as f32);
        bytes(&mut summary, 1, &v);
    }
    let mut event = Vec::new();
    double(&mut event, 1, time_s);
    key(&mut event, 2, 0);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    event
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&masked_crc32c(data).to_le_bytes());
    out
}

fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn float(out: &mut Vec<u8>, field: u64, value: f32) {
    key(out, field, 5);
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// TensorFlow's masked CRC-32C of `data`.
pub fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(MASK_DELTA)
}

fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize])
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_known_answers() {
        // RFC 3720, appendix B.4, and the usual check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn an_event_is_the_bytes_that_a_protobuf_encoder_writes() {
        // Event(wall_time=1.0, step=300, summary=Summary(value=[Value(tag="loss", simple_value=2.0)]))
        let wanted = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f][..],
            &[0x10, 0xac, 0x02],
            &[0x2a, 0x0d, 0x0a, 0x0b, 0x0a, 0x04],
            b"loss",
            &[0x15, 0, 0, 0, 0x40],
        ]
        .concat();
        assert_eq!(scalar_event(1.0, 300, &[("loss", 2.0)]), wanted);
    }

    #[test]
    fn frames_carry_their_length_and_sums() {
        let f = frame(b"abc");
        assert_eq!(f[..8], 3u64.to_le_bytes());
        assert_eq!(f[8..12], masked_crc32c(&3u64.to_le_bytes()).to_le_bytes());
        assert_eq!(&f[12..15], b"abc");
        assert_eq!(f[15..], masked_crc32c(b"abc").to_le_bytes());
    }
}
