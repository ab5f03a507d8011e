#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| margay_fuzz_bodies::agent_conf::check(input));
