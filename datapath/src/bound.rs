//! The kernel half between its ELF file and the kernel: its maps made or found, its programs bound
//! to them.
//!
//! What `aya::EbpfLoader` does, made of the same parts, but for one thing: that one begins by reading
//! the types of the whole kernel, which is most of what a load takes besides the kernel's own work.
//! Only programs that look into the kernel's structures need them. Invariant: margay's do not.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::EbpfError;
use aya::maps::{MapData, MapError};
use aya::programs::ProgramError;
use aya::sys::SyscallError;
use aya_obj::btf::{BtfError, BtfFeatures};
use aya_obj::{EbpfSectionKind, Map, Object, VerifierLog};
use margay_abi::event::report_map;
use margay_abi::program_name;

use crate::Program;
use crate::bpf::{self, Records, TcProgram};
use crate::load::LoadOptions;
use crate::maps::{LAYOUTS, Layout};
use crate::pins::Pins;

/// How often a program is handed to the verifier at most.
const VERIFIER_ATTEMPTS: u32 = 5;
/// Room for what the kernel finds wrong. Older kernels refuse more than `u32::MAX >> 8`.
const LOG_BYTES: usize = 1 << 23;
/// Room for events that one who listens has not read yet: some thousand.
const LOG_RING_BYTES: u32 = 1 << 20;

/// The programs of an object, ready to be loaded.
pub(crate) struct Bound {
    object: Object,
    btf: OwnedFd,
    /// By their names. The programs name them by their descriptors.
    maps: Vec<(String, MapData)>,
}

/// Where a map of the ABI comes from.
type Source<'a> = dyn Fn(&Layout, &mut Map, &OwnedFd) -> Result<MapData, EbpfError> + 'a;

impl Bound {
    /// Makes and pins the maps that are not pinned yet, and binds the programs to all of them.
    pub(crate) fn new(elf: &[u8], pins: &Pins, options: &LoadOptions) -> Result<Self, EbpfError> {
        Self::with_maps(Self::without_reporter(elf)?, &|layout, definition, btf| {
            definition.set_max_entries(layout.max_entries(options));
            open_or_create(layout.name, definition, btf, pins)
        })
    }

    /// Binds the programs to maps that are pinned, but for those that are in `own`, of which it makes new
    /// ones without a pin.
    pub(crate) fn beside(
        elf: &[u8],
        pins: &Pins,
        own: &[&str],
        options: &LoadOptions,
    ) -> Result<Self, EbpfError> {
        Self::with_maps(Self::without_reporter(elf)?, &|layout, definition, btf| {
            if !own.contains(&layout.name) {
                return Ok(MapData::from_pin(pins.map(layout.name))?);
            }
            definition.set_max_entries(layout.max_entries(options));
            create(layout.name, definition, btf)
        })
    }

    /// Binds the reporter to maps that are pinned, and to new ones of its own without a pin.
    pub(crate) fn reporting(elf: &[u8], pins: &Pins) -> Result<Self, EbpfError> {
        let mut object = Object::parse(elf)?;
        if let Some(log) = object.maps.get_mut(report_map::LOG) {
            log.set_max_entries(LOG_RING_BYTES);
        }
        Self::with_maps(object, &|layout, _, _| Ok(MapData::from_pin(pins.map(layout.name))?))
    }

    /// The object without the reporter, and so without its maps: all that are none of the ABI's.
    fn without_reporter(elf: &[u8]) -> Result<Object, EbpfError> {
        let mut object = Object::parse(elf)?;
        if let Some(reporter) = object.programs.remove(program_name::REPORT) {
            object.functions.remove(&reporter.function_key());
        }
        object.maps.retain(|name, _| LAYOUTS.iter().any(|layout| layout.name == name));
        Ok(object)
    }

    fn with_maps(mut object: Object, source: &Source<'_>) -> Result<Self, EbpfError> {
        let btf = load_btf(&mut object)?;
        let mut definitions = mem::take(&mut object.maps);
        let mut maps = Vec::with_capacity(definitions.len());
        for (name, definition) in &mut definitions {
            let map = match LAYOUTS.iter().find(|layout| layout.name == name) {
                Some(layout) => source(layout, definition, &btf)?,
                None => create(name, definition, &btf)?,
            };
            maps.push((name.clone(), map));
        }

        let text = object.functions.keys().map(|(section, _)| *section).collect::<HashSet<_>>();
        let made = maps.iter().filter_map(|(name, data)| {
            let definition = definitions.get(name)?;
            Some((&**name, data.fd().as_fd().as_raw_fd(), definition))
        });
        object.relocate_maps(made, &text)?;
        object.relocate_calls(&text)?;
        Ok(Self { object, btf, maps })
    }

    /// Hands over one of the maps, which has to outlive every [`load`](Self::load).
    pub(crate) fn take_map(&mut self, name: &str) -> Option<MapData> {
        let place = self.maps.iter().position(|(other, _)| other == name)?;
        Some(self.maps.swap_remove(place).1)
    }

    /// Whether the object has the program.
    pub(crate) fn has(&self, program: Program) -> bool {
        self.object.programs.contains_key(program.name())
    }

    /// Loads a program that the object has.
    pub(crate) fn load(&self, program: &str) -> Result<OwnedFd, ProgramError> {
        let definition = &self.object.programs[program];
        let function = &self.object.functions[&definition.function_key()];
        let name = CString::new(program).unwrap_or_default();
        verify(&TcProgram {
            name: &name,
            license: &definition.license,
            instructions: &function.instructions,
            btf: self.btf.as_fd(),
            functions: Records {
                bytes: &function.func_info.func_info_bytes(),
                record_bytes: function.func_info_rec_size,
            },
            lines: Records {
                bytes: &function.line_info.line_info_bytes(),
                record_bytes: function.line_info_rec_size,
            },
        })
    }
}

/// Gives the kernel the object's types and names, without those that it does not understand.
fn load_btf(object: &mut Object) -> Result<OwnedFd, EbpfError> {
    let none = BtfFeatures::default();
    let understood = aya::features().btf().unwrap_or(&none);
    let btf = object.fixup_and_sanitize_btf(understood)?.ok_or(EbpfError::NoBTF)?.to_bytes();
    bpf::load_btf(&btf, &mut []).or_else(|io_error| {
        let mut log = vec![0; LOG_BYTES];
        bpf::load_btf(&btf, &mut log)
            .map_err(|_again| BtfError::LoadError { io_error, verifier_log: text(&log) }.into())
    })
}

fn open_or_create(
    name: &str,
    definition: &Map,
    btf: &OwnedFd,
    pins: &Pins,
) -> Result<MapData, EbpfError> {
    let path = pins.map(name);
    if let Ok(map) = MapData::from_pin(&path) {
        return Ok(map);
    }
    let map = create(name, definition, btf)?;
    map.pin(&path).map_err(|error| MapError::PinError { name: Some(name.to_owned()), error })?;
    Ok(map)
}

fn create(name: &str, definition: &Map, btf: &OwnedFd) -> Result<MapData, EbpfError> {
    let map = MapData::create(definition.clone(), name, Some(btf.as_fd()))?;
    if !definition.data().is_empty() {
        bpf::fill(&map, definition.data()).map_err(failed("bpf_map_update_elem"))?;
    }
    if definition.section_kind() == EbpfSectionKind::Rodata {
        bpf::freeze(&map).map_err(failed("bpf_map_freeze"))?;
    }
    Ok(map)
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> MapError {
    move |io_error| SyscallError { call, io_error }.into()
}

/// Hands the program to the verifier, which gives up with `EAGAIN` when the kernel wants the thread
/// for something else meanwhile (`signal_pending` in `do_check`), and can be asked again. What it
/// has against a program takes much longer to write down, so that is asked for afterwards.
fn verify(program: &TcProgram<'_>) -> Result<OwnedFd, ProgramError> {
    let mut outcome = bpf::load_program(program, &mut []);
    for _ in 1..VERIFIER_ATTEMPTS {
        match &outcome {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                outcome = bpf::load_program(program, &mut []);
            }
            _ => break,
        }
    }
    outcome.or_else(|io_error| {
        let mut log = vec![0; LOG_BYTES];
        bpf::load_program(program, &mut log)
            .map_err(|_again| ProgramError::LoadError { io_error, verifier_log: text(&log) })
    })
}

/// What the kernel wrote: up to the first NUL.
fn text(log: &[u8]) -> VerifierLog {
    let written = log.split(|byte| *byte == 0).next().unwrap_or_default();
    VerifierLog::new(String::from_utf8_lossy(written).into_owned())
}
