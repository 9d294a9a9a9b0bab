// items

// function
pub fn crc8(data: &[u8]) -> u8 {
    let mut crc = 0u8;
    for &b in data {
        crc ^= b;
        for _ in 0..8 {
            crc = if crc & 0x80 != 0 { (crc << 1) ^ 0x07 } else { crc << 1 };
        }
    }
    crc
}
// tests
#[test] fn t() { assert_eq!(crc8(b"123456789"), 0xF4); assert_eq!(crc8(&[]), 0); }
