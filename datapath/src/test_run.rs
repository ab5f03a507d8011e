//! Runs a pinned program once on a frame of the caller's making (`BPF_PROG_TEST_RUN`): tests of the
//! packet path, and an operator's "what would become of this packet".
//!
//! The run counts, learns flows and logs like any packet. It sends nothing: a redirect shows as its
//! return code alone. Opening the program through aya triggers its feature probes (2 ms), so this
//! must stay off the path of an ADD.

use std::time::Duration;

use aya::TestRun as _;
use aya::programs::{ProgramError, SchedClassifier};
use bytemuck::{Pod, Zeroable};

use crate::pins::Pins;
use crate::{Datapath, Program};

/// Room for what a program may put in front of or behind the frame.
const GROWTH_BYTES: usize = 256;

/// Running a program on a frame failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestRunError {
    /// The program's pin cannot be opened.
    #[error("open the pinned program {}", program.name())]
    Open {
        /// Which program.
        program: Program,
        #[source]
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// The kernel refused the run: a frame of less than 14 bytes, or an interface that is not in
    /// this thread's network namespace.
    #[error("run {} on a frame of {frame_bytes} bytes", program.name())]
    Run {
        /// Which program.
        program: Program,
        /// Length of the frame.
        frame_bytes: usize,
        #[source]
        /// What the kernel said.
        source: Box<ProgramError>,
    },
}

/// What the program sees of the world beside the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestContext {
    /// Interface the frame is on, in this thread's network namespace; 0 is the loopback device.
    pub ifindex: u32,
    /// Interface the frame came in on; 0 for none.
    pub ingress_ifindex: u32,
    /// The packet's mark.
    pub mark: u32,
    /// How often to run; each run sees what the one before left of the frame.
    pub repeat: u32,
}

impl Default for TestContext {
    fn default() -> Self {
        Self { ifindex: 0, ingress_ifindex: 0, mark: 0, repeat: 1 }
    }
}

/// What became of the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// The TC action (`TC_ACT_*`).
    pub action: i32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Mean time of one run.
    pub duration: Duration,
}

/// The beginning of `struct __sk_buff` (`include/uapi/linux/bpf.h`). The kernel takes the rest for
/// zero, and insists on zero in the fields that are named here with an underscore.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct SkBuff {
    _len: u32,
    _pkt_type: u32,
    mark: u32,
    _queue_mapping: u32,
    _protocol: u32,
    _vlan_present: u32,
    _vlan_tci: u32,
    _vlan_proto: u32,
    _priority: u32,
    ingress_ifindex: u32,
    ifindex: u32,
}

impl From<TestContext> for SkBuff {
    fn from(TestContext { ifindex, ingress_ifindex, mark, .. }: TestContext) -> Self {
        Self { mark, ingress_ifindex, ifindex, ..Self::zeroed() }
    }
}

impl Datapath {
    /// Runs `program` on `frame`, which begins with its Ethernet header.
    pub fn test_run(
        &self,
        program: Program,
        frame: &[u8],
        context: TestContext,
    ) -> Result<TestRun, TestRunError> {
        run(self.pins(), program, frame, context)
    }
}

fn run(
    pins: &Pins,
    program: Program,
    frame: &[u8],
    context: TestContext,
) -> Result<TestRun, TestRunError> {
    let classifier = SchedClassifier::from_pin(pins.program(program))
        .map_err(|source| TestRunError::Open { program, source: Box::new(source) })?;

    let sk_buff = SkBuff::from(context);
    let mut out = vec![0; frame.len() + GROWTH_BYTES];
    let options = aya::TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(bytemuck::bytes_of(&sk_buff)),
        repeat: context.repeat,
        ..aya::TestRunOptions::new()
    };
    let result = classifier.test_run(options).map_err(|source| TestRunError::Run {
        program,
        frame_bytes: frame.len(),
        source: Box::new(source),
    })?;

    out.truncate(result.data_size_out as usize);
    Ok(TestRun { action: result.return_value.cast_signed(), frame: out, duration: result.duration })
}
