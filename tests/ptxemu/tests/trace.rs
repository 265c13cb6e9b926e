//! Traces of a sample of blocks.

use ptxemu::trace::{Cost, Event, LaunchTrace, sector_of, trace};
use ptxemu::{Dim3, Launch, Memory, Module, Options};

/// Each thread of block b reads `in[32 b + i]`, writes it to shared memory, waits for its block, reads its neighbour's,
/// and every second thread writes it to `out`.
const NEIGHBOURS: &str = r#"
.version 8.0
.target sm_90
.address_size 64
.visible .entry neighbours(.param .u64 p_in, .param .u64 p_out)
{
    .reg .pred %p<2>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<6>;
    .reg .f32 %f<3>;
    .shared .align 4 .b8 room[128];
    ld.param.u64 %rd1, [p_in];
    ld.param.u64 %rd2, [p_out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.lo.s32 %r3, %r2, 32, %r1;
    mul.wide.u32 %rd3, %r3, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4];
    mov.u32 %r4, room;
    mad.lo.s32 %r5, %r1, 4, %r4;
    st.shared.f32 [%r5], %f1;
    bar.sync 0;
    xor.b32 %r6, %r5, 4;
    ld.shared.f32 %f2, [%r6];
    and.b32 %r7, %r1, 1;
    setp.eq.u32 %p1, %r7, 0;
    @%p1 st.global.f32 [%rd5], %f2;
    ret;
}
"#;

fn traced(blocks: &[u64]) -> (LaunchTrace, u64, u64) {
    let module = Module::parse(NEIGHBOURS).unwrap();
    let kernel = module.kernel("neighbours").unwrap();
    let memory = Memory::new();
    memory.set_plausible(true);
    let (input, output) = (memory.alloc(1280), memory.alloc(1280));
    let params: Vec<u8> = [input, output]
        .iter()
        .flat_map(|a| a.to_le_bytes())
        .collect();
    let launch = Launch::new(10, Dim3::new(32, 1, 1), &params);
    let trace = trace(
        &module,
        kernel,
        &launch,
        &memory,
        &Options::default(),
        blocks,
    )
    .unwrap();
    (trace, input, output)
}

#[test]
fn steps_carry_costs_registers_and_events() {
    let (trace, input, output) = traced(&[3]);
    assert_eq!(
        (trace.kernel.as_str(), trace.grid_blocks()),
        ("neighbours", 10)
    );
    assert_eq!(
        (trace.threads, trace.cluster, trace.shared_bytes),
        (32, 1, 128)
    );
    let [warps] = &trace.blocks[..] else {
        panic!("one block")
    };
    let [warp] = &warps[..] else {
        panic!("one warp")
    };
    let steps: Vec<(Cost, Vec<Event>)> = warp
        .steps()
        .map(|step| {
            (
                trace.code[step.index as usize].cost,
                step.events().collect(),
            )
        })
        .collect();
    let costs: Vec<Cost> = steps.iter().map(|step| step.0).collect();
    let expected = [
        Cost::Free,
        Cost::Free,
        Cost::Special,
        Cost::Special,
        Cost::Multiply,
        Cost::MultiplyWide,
        Cost::IntegerWide,
        Cost::IntegerWide,
        Cost::LoadGlobal,
        Cost::Constant,
        Cost::Multiply,
        Cost::StoreShared,
        Cost::Barrier,
        Cost::Integer,
        Cost::LoadShared,
        Cost::Integer,
        Cost::Integer,
        Cost::StoreGlobal,
        Cost::Exit,
    ];
    assert_eq!(costs, expected);
    let sectors = |address: u64| (sector_of(address + 3 * 128), 4);
    let (first, count) = sectors(input);
    assert_eq!(
        steps[8].1,
        [Event::Read {
            first,
            sectors: count
        }]
    );
    let shared = Event::Shared {
        wavefronts: 1,
        remote: false,
    };
    assert_eq!(
        (&steps[11].1[..], &steps[14].1[..]),
        (&[shared][..], &[shared][..])
    );
    assert_eq!(steps[12].1, [Event::Barrier { id: 0, threads: 0 }]);
    let (first, count) = sectors(output);
    assert_eq!(
        steps[17].1,
        [Event::Written {
            first,
            sectors: count
        }]
    );
    // The guarded store reads its predicate, its address and its value, which other instructions write.
    let store = &trace.code[17];
    assert!(store.guarded && store.writes.is_empty());
    let writes = |index: usize| trace.code[index].writes[0];
    assert_eq!(store.reads, [writes(16), writes(7), writes(14)]);
}

#[test]
fn only_the_sampled_blocks_run() {
    let (trace, ..) = traced(&[0, 9, 4]);
    assert_eq!(trace.blocks.len(), 3);
    let (whole, ..) = traced(&(0..10).collect::<Vec<u64>>());
    for (block, index) in [0, 9, 4].into_iter().enumerate() {
        assert_eq!(trace.blocks[block], whole.blocks[index]);
    }
    assert_ne!(whole.blocks[0], whole.blocks[1]);
}
