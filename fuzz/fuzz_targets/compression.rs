#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lostlove_fuzz::compression(data));
