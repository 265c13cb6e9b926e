//! Logic, shifts and bit fields.

use crate::table::{Kind::*, check, refused};

const LOW32: u64 = 0xffff_ffff;

#[test]
fn and_or_xor_not() {
    for (ty, kind, mask) in [
        ("b16", B16, 0xffff),
        ("b32", B32, LOW32),
        ("b64", B64, u64::MAX),
    ] {
        check(
            &format!("and.{ty} %d, %a, %b;"),
            &[kind, kind],
            kind,
            |[a, b, _]| a & b,
        );
        check(
            &format!("or.{ty} %d, %a, %b;"),
            &[kind, kind],
            kind,
            |[a, b, _]| a | b,
        );
        check(
            &format!("xor.{ty} %d, %a, %b;"),
            &[kind, kind],
            kind,
            |[a, b, _]| a ^ b,
        );
        check(&format!("not.{ty} %d, %a;"), &[kind], kind, |[a, ..]| {
            !a & mask
        });
        check(&format!("cnot.{ty} %d, %a;"), &[kind], kind, |[a, ..]| {
            u64::from(a == 0)
        });
    }
}

#[test]
fn predicates_have_logic_too() {
    check("and.pred %d, %a, %b;", &[Pred, Pred], Pred, |[a, b, _]| {
        a & b
    });
    check("or.pred %d, %a, !%b;", &[Pred, Pred], Pred, |[a, b, _]| {
        a | (b ^ 1)
    });
    check("xor.pred %d, %a, %b;", &[Pred, Pred], Pred, |[a, b, _]| {
        a ^ b
    });
    check("not.pred %d, %a;", &[Pred], Pred, |[a, ..]| a ^ 1);
    check("mov.pred %d, %a;", &[Pred], Pred, |[a, ..]| a);
    check("mov.pred %d, 1;", &[], Pred, |_| 1);
}

#[test]
fn lop3_follows_its_table() {
    // The table of a function is the function of 0xF0, 0xCC and 0xAA.
    type Logic = fn(u64, u64, u64) -> u64;
    let functions: [(u32, Logic); 4] = [
        (0x80, |a, b, c| a & b & c),
        (0x96, |a, b, c| a ^ b ^ c),
        (0xe8, |a, b, c| a & b | b & c | a & c),
        (0xb8, |a, b, c| a & !b | b & c),
    ];
    for (table, f) in functions {
        let body = format!("lop3.b32 %d, %a, %b, %c, {table:#x};");
        check(&body, &[B32, B32, B32], B32, |[a, b, c]| f(a, b, c) & LOW32);
    }
    check(
        "lop3.b32 %d, %a, %b, %c, 0x0F;",
        &[B32, B32, B32],
        B32,
        |[a, ..]| !a & LOW32,
    );
    check(
        "lop3.b32 %d, %a, %b, %c, 0x33;",
        &[B32, B32, B32],
        B32,
        |[_, b, _]| !b & LOW32,
    );
    check(
        "lop3.b32 %d, %a, %b, %c, 0x55;",
        &[B32, B32, B32],
        B32,
        |[_, _, c]| !c & LOW32,
    );
}

#[test]
fn shifts_clamp() {
    let left = |bits: u32| {
        move |[a, by, _]: [u64; 3]| {
            if by >= bits.into() {
                0
            } else {
                a << by & (u64::MAX >> (64 - bits))
            }
        }
    };
    check("shl.b16 %d, %a, %b;", &[B16, Amount], B16, left(16));
    check("shl.b32 %d, %a, %b;", &[B32, Amount], B32, left(32));
    check("shl.b64 %d, %a, %b;", &[B64, Amount], B64, left(64));
    let right = |bits: u32| move |[a, by, _]: [u64; 3]| if by >= bits.into() { 0 } else { a >> by };
    check("shr.u16 %d, %a, %b;", &[B16, Amount], B16, right(16));
    check("shr.b32 %d, %a, %b;", &[B32, Amount], B32, right(32));
    check("shr.u64 %d, %a, %b;", &[B64, Amount], B64, right(64));
    check("shr.s16 %d, %a, %b;", &[B16, Amount], B16, |[a, by, _]| {
        (i64::from(a as i16) >> by.min(63)) as u16 as u64
    });
    check("shr.s32 %d, %a, %b;", &[B32, Amount], B32, |[a, by, _]| {
        (i64::from(a as i32) >> by.min(63)) as u32 as u64
    });
    check("shr.s64 %d, %a, %b;", &[B64, Amount], B64, |[a, by, _]| {
        (a as i64 >> by.min(63)) as u64
    });
}

#[test]
fn funnel_shifts() {
    let both = |low: u64, high: u64| u128::from(high << 32 | low);
    check(
        "shf.l.clamp.b32 %d, %a, %b, %c;",
        &[B32, B32, Amount],
        B32,
        |[a, b, n]| (both(a, b) << n.min(32) >> 32) as u32 as u64,
    );
    check(
        "shf.l.wrap.b32 %d, %a, %b, %c;",
        &[B32, B32, Amount],
        B32,
        |[a, b, n]| (both(a, b) << (n % 32) >> 32) as u32 as u64,
    );
    check(
        "shf.r.clamp.b32 %d, %a, %b, %c;",
        &[B32, B32, Amount],
        B32,
        |[a, b, n]| (both(a, b) >> n.min(32)) as u32 as u64,
    );
    check(
        "shf.r.wrap.b32 %d, %a, %b, %c;",
        &[B32, B32, Amount],
        B32,
        |[a, b, n]| (both(a, b) >> (n % 32)) as u32 as u64,
    );
}

/// Bit by bit, as the manual's pseudocode has it.
fn bfe(a: u64, at: u64, len: u64, bits: u64, signed: bool) -> u64 {
    let (at, len) = (at & 255, len & 255);
    let bit = |i: u64| if i < bits { a >> i & 1 } else { 0 };
    let sign = if !signed || len == 0 {
        0
    } else {
        a >> (at + len - 1).min(bits - 1) & 1
    };
    (0..bits).fold(0, |d, i| {
        let b = if i < len && at + i < bits {
            bit(at + i)
        } else {
            sign
        };
        d | b << i
    })
}

#[test]
fn bfe_extracts_and_extends() {
    check(
        "bfe.u32 %d, %a, %b, %c;",
        &[B32, Amount, Amount],
        B32,
        |[a, b, c]| bfe(a, b, c, 32, false),
    );
    check(
        "bfe.s32 %d, %a, %b, %c;",
        &[B32, Amount, Amount],
        B32,
        |[a, b, c]| bfe(a, b, c, 32, true),
    );
    check(
        "bfe.u64 %d, %a, %b, %c;",
        &[B64, Amount, Amount],
        B64,
        |[a, b, c]| bfe(a, b, c, 64, false),
    );
    check(
        "bfe.s64 %d, %a, %b, %c;",
        &[B64, Amount, Amount],
        B64,
        |[a, b, c]| bfe(a, b, c, 64, true),
    );
}

#[test]
fn bfi_inserts() {
    let bfi = |a: u64, b: u64, at: u64, len: u64, bits: u64| {
        (0..len)
            .filter(|i| at + i < bits)
            .fold(b, |d, i| d & !(1 << (at + i)) | (a >> i & 1) << (at + i))
    };
    for (at, len) in [(0, 32), (4, 8), (31, 1), (28, 8), (32, 4), (0, 0), (7, 60)] {
        let body = format!("bfi.b32 %d, %a, %b, {at}, {len};");
        check(&body, &[B32, B32], B32, |[a, b, _]| {
            bfi(a, b, at, len.min(32), 32)
        });
        let body = format!("bfi.b64 %d, %a, %b, {at}, {len};");
        check(&body, &[B64, B64], B64, |[a, b, _]| bfi(a, b, at, len, 64));
    }
}

#[test]
fn bfind_finds_the_leading_bit() {
    let find = |x: u64| (0..64).rev().find(|i| x >> i & 1 == 1).unwrap_or(LOW32);
    check("bfind.u32 %d, %a;", &[B32], B32, |[a, ..]| find(a));
    check("bfind.u64 %d, %a;", &[B64], B32, |[a, ..]| find(a));
    let magnitude = |x: i64| if x < 0 { !x as u64 } else { x as u64 };
    check("bfind.s32 %d, %a;", &[B32], B32, |[a, ..]| {
        find(magnitude((a as i32).into()))
    });
    check("bfind.s64 %d, %a;", &[B64], B32, |[a, ..]| {
        find(magnitude(a as i64))
    });
    check("bfind.shiftamt.u32 %d, %a;", &[B32], B32, |[a, ..]| {
        if a == 0 { LOW32 } else { 31 - find(a) }
    });
}

#[test]
fn counting_and_reversing() {
    check("popc.b32 %d, %a;", &[B32], B32, |[a, ..]| {
        (0..32).map(|i| a >> i & 1).sum()
    });
    check("popc.b64 %d, %a;", &[B64], B32, |[a, ..]| {
        (0..64).map(|i| a >> i & 1).sum()
    });
    let zeros = |a: u64, bits: u64| (0..bits).rev().take_while(|i| a >> i & 1 == 0).count() as u64;
    check("clz.b32 %d, %a;", &[B32], B32, |[a, ..]| zeros(a, 32));
    check("clz.b64 %d, %a;", &[B64], B32, |[a, ..]| zeros(a, 64));
    let reverse = |a: u64, bits: u64| (0..bits).fold(0, |d, i| d | (a >> i & 1) << (bits - 1 - i));
    check("brev.b32 %d, %a;", &[B32], B32, |[a, ..]| reverse(a, 32));
    check("brev.b64 %d, %a;", &[B64], B64, |[a, ..]| reverse(a, 64));
}

#[test]
fn bmsk_and_szext() {
    check(
        "bmsk.clamp.b32 %d, %a, %b;",
        &[Amount, Amount],
        B32,
        |[at, len, _]| {
            (0..32)
                .filter(|i| *i >= at && *i < at + len)
                .fold(0, |d, i| d | 1 << i)
        },
    );
    check(
        "bmsk.wrap.b32 %d, %a, %b;",
        &[Amount, Amount],
        B32,
        |[at, len, _]| {
            (0..32)
                .filter(|i| *i >= at % 32 && *i < at % 32 + len % 32)
                .fold(0, |d, i| d | 1 << i)
        },
    );
    check(
        "szext.clamp.s32 %d, %a, %b;",
        &[B32, Amount],
        B32,
        |[a, n, _]| bfe(a, 0, n.min(32), 32, true),
    );
    check(
        "szext.wrap.u32 %d, %a, %b;",
        &[B32, Amount],
        B32,
        |[a, n, _]| bfe(a, 0, n % 32, 32, false),
    );
}

#[test]
fn prmt_picks_bytes() {
    let pick = |a: u64, b: u64, selectors: [u64; 4]| {
        let both = b << 32 | a;
        selectors.iter().enumerate().fold(0, |d, (i, s)| {
            let byte = both >> (8 * (s & 7)) & 255;
            let byte = if s & 8 == 0 {
                byte
            } else if byte >> 7 == 1 {
                255
            } else {
                0
            };
            d | byte << (8 * i)
        })
    };
    for selector in [
        0x3210u64, 0x7654, 0x5410, 0x1054, 0x0123, 0x89ab, 0xfedc, 0x7632,
    ] {
        let body = format!("prmt.b32 %d, %a, %b, {selector:#x}U;");
        let nibbles = std::array::from_fn(|i| selector >> (4 * i) & 15);
        check(&body, &[B32, B32], B32, |[a, b, _]| pick(a, b, nibbles));
    }
    for n in 0..4u64 {
        let modes: [(&str, [u64; 4]); 6] = [
            ("f4e", [n, n + 1, n + 2, n + 3]),
            ("b4e", [n, (n + 7) % 8, (n + 6) % 8, (n + 5) % 8]),
            ("rc8", [n; 4]),
            ("ecl", [n, n.max(1), n.max(2), n.max(3)]),
            ("ecr", [0, n.min(1), n.min(2), n.min(3)]),
            ("rc16", [n % 2 * 2, n % 2 * 2 + 1, n % 2 * 2, n % 2 * 2 + 1]),
        ];
        for (mode, selectors) in modes {
            let body = format!("prmt.b32.{mode} %d, %a, %b, {n};");
            check(&body, &[B32, B32], B32, |[a, b, _]| pick(a, b, selectors));
        }
    }
    refused("prmt.b64 %rd1, %rd2, %rd3, 4;", ".b32");
}
