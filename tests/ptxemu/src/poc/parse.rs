use crate::poc::{bail, num::*, EmuError, Res};
use std::collections::HashMap;

pub type Lanes = [u64; 32];
pub type F1 = Box<dyn Fn(&Lanes) -> Lanes + Send + Sync>;
pub type F2 = Box<dyn Fn(&Lanes, &Lanes) -> Lanes + Send + Sync>;
pub type F3 = Box<dyn Fn(&Lanes, &Lanes, &Lanes) -> Lanes + Send + Sync>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space { Param, Global, Shared, Local, Generic, Const }
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ty { pub k: u8, pub bits: u32, pub x2: bool } // k: b u s f(loat) h(alf: f16) w(bf16) p(red) t(f32)
pub struct Addr { pub base: u32, pub off: i64 }
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShflMode { Up, Down, Bfly, Idx }
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmaTy { F16, Bf16, Tf32 }
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Atom { Add, Min, Max, And, Or, Xor, Exch, Cas }

pub enum Op {
    A1(F1, u32, u32), A2(F2, u32, u32, u32), A3(F3, u32, u32, u32, u32),
    Unpack { d: Vec<u32>, a: u32, bits: u32 }, Pack { d: u32, a: Vec<u32>, bits: u32 },
    Ld { sp: Space, bytes: u32, sx: bool, d: Vec<u32>, a: Addr }, St { sp: Space, bytes: u32, s: Vec<u32>, a: Addr },
    Bra(u32), Ret, Nop,
    Bar { id: u32, cnt: u32, arrive: bool }, WarpSync(u32),
    Shfl { m: ShflMode, d: u32, p: u32, a: u32, b: u32, c: u32, mask: u32 },
    Vote { kind: u8, d: u32, p: u32, mask: u32 }, ActiveMask(u32),
    CpAsync { dst: Addr, src: Addr, n: u32, srcn: u32 }, CpCommit, CpWait(u32), CpWaitAll,
    LdMatrix { d: Vec<u32>, a: Addr, trans: bool },
    Mma { d: Vec<u32>, a: Vec<u32>, b: Vec<u32>, c: Vec<u32>, ty: MmaTy, k: u32, f16acc: bool },
    Atomic { op: Atom, ty: Ty, sp: Space, d: u32, a: Addr, b: u32, c: u32 },
}
pub struct Inst { pub guard: u32, pub neg: bool, pub op: Op, pub line: u32, pub src: u32, pub text: String }
#[derive(Clone, Debug)]
pub struct Param { pub off: usize, pub size: usize, pub align: usize, pub name: String }
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spec { TidX, TidY, TidZ, NtidX, NtidY, NtidZ, CtaX, CtaY, CtaZ, NctaX, NctaY, NctaZ, Lane, WarpId, NWarp, DynSmem, MaskLt, MaskLe, MaskEq, MaskGt, MaskGe, Clock }
pub struct Kernel {
    pub name: String, pub params: Vec<Param>, pub param_bytes: usize, pub code: Vec<Inst>, pub nregs: u32,
    pub consts: Vec<(u32, u64)>, pub specs: Vec<(u32, Spec)>, pub shared_bytes: u32, pub local_bytes: u32, pub maxntid: u32,
}
#[derive(Default)]
pub struct Module { pub kernels: HashMap<String, Kernel>, pub target: String, pub version: String }
pub const NOREG: u32 = u32::MAX;
pub const SHARED_WIN: u64 = 1 << 60;
pub const LOCAL_WIN: u64 = 1 << 61;

fn sx(v: u64, bits: u32) -> i64 { ((v << (64 - bits)) as i64) >> (64 - bits) }
fn msk(bits: u32) -> u64 { if bits == 64 { !0 } else { (1u64 << bits) - 1 } }
fn f(v: u64) -> f32 { f32::from_bits(v as u32) }
fn fb(v: f32) -> u64 { v.to_bits() as u64 }
fn d(v: u64) -> f64 { f64::from_bits(v) }
fn v1(g: impl Fn(u64) -> u64 + Send + Sync + 'static) -> F1 { Box::new(move |a| std::array::from_fn(|i| g(a[i]))) }
fn v2(g: impl Fn(u64, u64) -> u64 + Send + Sync + 'static) -> F2 { Box::new(move |a, b| std::array::from_fn(|i| g(a[i], b[i]))) }
fn v3(g: impl Fn(u64, u64, u64) -> u64 + Send + Sync + 'static) -> F3 { Box::new(move |a, b, c| std::array::from_fn(|i| g(a[i], b[i], c[i]))) }

pub fn ty(s: &str) -> Option<Ty> {
    let t = |k, bits, x2| Some(Ty { k, bits, x2 });
    match s {
        "pred" => t(b'p', 1, false), "f16" => t(b'h', 16, false), "f16x2" => t(b'h', 32, true), "bf16" => t(b'w', 16, false),
        "bf16x2" => t(b'w', 32, true), "tf32" => t(b't', 32, false), "f32" => t(b'f', 32, false), "f64" => t(b'f', 64, false),
        _ => { let k = s.as_bytes().first().copied()?; if !matches!(k, b'b' | b'u' | b's') { return None }
            let bits: u32 = s[1..].parse().ok()?; if matches!(bits, 8 | 16 | 32 | 64 | 128) { t(k, bits, false) } else { None } }
    }
}

struct P<'a> {
    scopes: Vec<HashMap<String, u32>>, syms: HashMap<String, (Space, u64)>, consts: HashMap<u64, u32>, specs: Vec<(u32, Spec)>,
    nregs: u32, labels: HashMap<String, u32>, fix: Vec<(usize, String)>, code: Vec<Inst>, line: u32, srcl: u32, kname: &'a str,
}
impl P<'_> {
    fn new_reg(&mut self) -> u32 { self.nregs += 1; self.nregs - 1 }
    fn imm(&mut self, v: u64) -> u32 { if let Some(&r) = self.consts.get(&v) { return r } let r = self.new_reg(); self.consts.insert(v, r); r }
    fn spec(&mut self, s: Spec) -> u32 { if let Some(x) = self.specs.iter().find(|x| x.1 == s) { return x.0 } let r = self.new_reg(); self.specs.push((r, s)); r }
    fn reg(&mut self, n: &str) -> Res<u32> {
        if n == "_" { return Ok(self.new_reg()) }
        for s in self.scopes.iter().rev() { if let Some(&r) = s.get(n) { return Ok(r) } }
        bail!("PTX line {}: unknown register `{}`", self.line, n)
    }
    fn opnd(&mut self, s: &str, bits: u32) -> Res<u32> {
        let s = s.trim();
        if let Some(r) = s.strip_prefix('!') {
            let a = self.opnd(r, 1)?; let t = self.new_reg();
            self.push(NOREG, false, Op::A1(v1(|a| a ^ 1), t, a), "not.pred (implicit)"); return Ok(t)
        }
        if let Some(h) = s.strip_prefix("0f").or(s.strip_prefix("0F")) { if h.len() == 8 { let v = u32::from_str_radix(h, 16).map_err(|e| EmuError(e.to_string()))?; return Ok(self.imm(v as u64)) } }
        if let Some(h) = s.strip_prefix("0d").or(s.strip_prefix("0D")) { if h.len() == 16 { let v = u64::from_str_radix(h, 16).map_err(|e| EmuError(e.to_string()))?; return Ok(self.imm(v)) } }
        let c = s.as_bytes()[0];
        if c.is_ascii_digit() || c == b'-' {
            let (neg, t) = match s.strip_prefix('-') { Some(t) => (true, t), None => (false, s) };
            let t = t.trim_end_matches('U');
            let v = if let Some(h) = t.strip_prefix("0x") { u64::from_str_radix(h, 16) } else { t.parse::<u64>() }.map_err(|e| EmuError(format!("{s}: {e}")))?;
            let v = if neg { (v as i64).wrapping_neg() as u64 } else { v };
            return Ok(self.imm(v & msk(bits.clamp(1, 64).max(1))))
        }
        use Spec::*;
        let sp = match s {
            "%tid.x" => TidX, "%tid.y" => TidY, "%tid.z" => TidZ, "%ntid.x" => NtidX, "%ntid.y" => NtidY, "%ntid.z" => NtidZ,
            "%ctaid.x" => CtaX, "%ctaid.y" => CtaY, "%ctaid.z" => CtaZ, "%nctaid.x" => NctaX, "%nctaid.y" => NctaY, "%nctaid.z" => NctaZ,
            "%laneid" => Lane, "%warpid" => WarpId, "%nwarpid" => NWarp, "%dynamic_smem_size" => DynSmem, "%lanemask_lt" => MaskLt, "%lanemask_le" => MaskLe,
            "%lanemask_eq" => MaskEq, "%lanemask_gt" => MaskGt, "%lanemask_ge" => MaskGe, "%clock" | "%clock64" | "%globaltimer" => Clock, "WARP_SZ" => return Ok(self.imm(32)),
            _ => { let (b, o) = split_off(s);
                if let Some(&(_, v)) = self.syms.get(b) { return Ok(self.imm(v.wrapping_add(o as u64))) } return self.reg(s) }
        };
        Ok(self.spec(sp))
    }
    fn addr(&mut self, s: &str) -> Res<Addr> {
        let s = s.trim().strip_prefix('[').and_then(|s| s.strip_suffix(']')).ok_or_else(|| EmuError(format!("PTX line {}: bad address {}", self.line, s)))?.trim();
        let (b, off) = split_off(s);
        Ok(Addr { base: self.opnd(b, 64)?, off })
    }
    fn list(&mut self, s: &str, bits: u32) -> Res<Vec<u32>> {
        let s = s.trim();
        if let Some(i) = s.strip_prefix('{').and_then(|s| s.strip_suffix('}')) { i.split(',').map(|x| self.opnd(x, bits)).collect() } else { Ok(vec![self.opnd(s, bits)?]) }
    }
    fn push(&mut self, guard: u32, neg: bool, op: Op, text: &str) { self.code.push(Inst { guard, neg, op, line: self.line, src: self.srcl, text: text.into() }) }

    fn inst(&mut self, st: &str) -> Res<()> {
        let mut st = st.trim(); let (mut guard, mut neg) = (NOREG, false); let full = st;
        if let Some(r) = st.strip_prefix('@') {
            let r = match r.strip_prefix('!') { Some(r) => { neg = true; r } None => r };
            let e = r.find(char::is_whitespace).unwrap(); guard = self.reg(&r[..e])?; st = r[e..].trim();
        }
        let e = st.find(|c: char| c.is_whitespace()).unwrap_or(st.len());
        let (mn, rest) = (&st[..e], st[e..].trim());
        let o = split_ops(rest); let parts: Vec<&str> = mn.split('.').collect();
        let tys: Vec<Ty> = parts[1..].iter().filter_map(|p| ty(p)).collect();
        let t = tys.last().copied().unwrap_or(Ty { k: b'b', bits: 32, x2: false });
        let has = |x: &str| parts.contains(&x);
        let line_ = self.line; let unsup = || EmuError(format!("unsupported PTX instruction `{}` (line {})", full, line_));
        let space = || if parts.iter().any(|p| p.starts_with("shared")) { Space::Shared } else if has("global") { Space::Global } else if has("param") { Space::Param }
            else if has("local") { Space::Local } else if has("const") { Space::Const } else { Space::Generic };
        macro_rules! r { ($i:expr, $b:expr) => { self.opnd(o[$i], $b)? } }
        macro_rules! a1 { ($g:expr) => {{ let g = $g; let (dd, a) = (r!(0, t.bits), r!(1, t.bits)); Op::A1(v1(g), dd, a) }} }
        macro_rules! a2 { ($g:expr) => {{ let g = $g; let (dd, a, b) = (r!(0, t.bits), r!(1, t.bits), r!(2, t.bits)); Op::A2(v2(g), dd, a, b) }} }
        macro_rules! a3 { ($g:expr) => {{ let g = $g; let (dd, a, b, c) = (r!(0, t.bits), r!(1, t.bits), r!(2, t.bits), r!(3, t.bits)); Op::A3(v3(g), dd, a, b, c) }} }
        let (bits, m) = (t.bits, msk(t.bits));
        let isf32 = t.k == b'f' && bits == 32; let isf64 = t.k == b'f' && bits == 64; let s = t.k == b's';
        let h1 = move |g: fn(f32) -> f32| move |a: u64| { let q = |x: u64| f2h(g(h2f(x as u16))) as u64; if t.x2 { q(a & 0xffff) | q(a >> 16) << 16 } else { q(a) } };
        let hconv = move |x: u64| if t.k == b'w' { bf2f(x as u16) } else { h2f(x as u16) };
        let hback = move |x: f32| if t.k == b'w' { f2bf(x) as u64 } else { f2h(x) as u64 };
        let h2 = move |g: fn(f32, f32) -> f32| move |a: u64, b: u64| { let q = |x: u64, y: u64| hback(g(hconv(x), hconv(y))); if t.x2 { q(a & 0xffff, b & 0xffff) | q(a >> 16, b >> 16) << 16 } else { q(a, b) } };
        let ish = matches!(t.k, b'h' | b'w');
        let op = match parts[0] {
            "mov" => {
                if o[0].starts_with('{') { let dd = self.list(o[0], 64)?; let a = r!(1, bits); let b = bits / dd.len() as u32; Op::Unpack { d: dd, a, bits: b } }
                else if o[1].starts_with('{') { let a = self.list(o[1], 64)?; let dd = r!(0, bits); let b = bits / a.len() as u32; Op::Pack { d: dd, a, bits: b } }
                else { a1!(|a| a) }
            }
            "cvta" => { let sp = space(); let to = has("to"); let w = match sp { Space::Shared => SHARED_WIN, Space::Local => LOCAL_WIN, _ => 0 };
                if to { a1!(move |a| a & !w) } else { a1!(move |a| a | w) } }
            "isspacep" => { let w = match space() { Space::Shared => SHARED_WIN, Space::Local => LOCAL_WIN, _ => 0 }; let (dd, a) = (r!(0, 1), r!(1, 64)); Op::A1(v1(move |a| (if w != 0 { a & w != 0 } else { a >> 60 == 0 }) as u64), dd, a) }
            "ld" | "ldu" => { let dd = self.list(o[0], bits)?; let a = self.addr(o[1])?; Op::Ld { sp: space(), bytes: bits / 8, sx: s, d: dd, a } }
            "st" => { let a = self.addr(o[0])?; let sr = self.list(o[1], bits)?; Op::St { sp: space(), bytes: bits / 8, s: sr, a } }
            "add" if isf32 => a2!(|a, b| fb(f(a) + f(b))), "sub" if isf32 => a2!(|a, b| fb(f(a) - f(b))),
            "add" if isf64 => a2!(|a, b| (d(a) + d(b)).to_bits()), "sub" if isf64 => a2!(|a, b| (d(a) - d(b)).to_bits()), "mul" if isf64 => a2!(|a, b| (d(a) * d(b)).to_bits()),
            "mul" if isf32 => a2!(|a, b| fb(f(a) * f(b))), "div" if isf32 => a2!(|a, b| fb(f(a) / f(b))), "div" if isf64 => a2!(|a, b| (d(a) / d(b)).to_bits()),
            "add" if ish => a2!(h2(|a, b| a + b)), "sub" if ish => a2!(h2(|a, b| a - b)), "mul" if ish => a2!(h2(|a, b| a * b)), "max" if ish => a2!(h2(f32::max)), "min" if ish => a2!(h2(f32::min)),
            "neg" if t.k == b'h' => a1!(h1(|a| -a)), "abs" if t.k == b'h' => a1!(h1(f32::abs)),
            "fma" | "mad" if isf32 => a3!(|a, b, c| fb(f(a).mul_add(f(b), f(c)))),
            "fma" | "mad" if isf64 => a3!(|a, b, c| d(a).mul_add(d(b), d(c)).to_bits()),
            "fma" if t.k == b'h' => a3!(move |a: u64, b: u64, c: u64| { let q = |x: u64, y: u64, z: u64| f2h(h2f(x as u16).mul_add(h2f(y as u16), h2f(z as u16))) as u64; if t.x2 { q(a & 0xffff, b & 0xffff, c & 0xffff) | q(a >> 16, b >> 16, c >> 16) << 16 } else { q(a, b, c) } }),
            "min" if isf32 => a2!(|a, b| fb(f(a).min(f(b)))), "max" if isf32 => a2!(|a, b| fb(f(a).max(f(b)))), "abs" if isf32 => a1!(|a| a & 0x7fffffff), "neg" if isf32 => a1!(|a| a ^ 0x80000000),
            "rcp" if isf32 => a1!(|a| fb(1.0 / f(a))), "sqrt" if isf32 => a1!(|a| fb(f(a).sqrt())), "rsqrt" if isf32 => a1!(|a| fb(1.0 / f(a).sqrt())),
            "ex2" if isf32 => a1!(|a| fb(f(a).exp2())), "lg2" if isf32 => a1!(|a| fb(f(a).log2())), "tanh" if isf32 => a1!(|a| fb(f(a).tanh())), "sin" if isf32 => a1!(|a| fb(f(a).sin())), "cos" if isf32 => a1!(|a| fb(f(a).cos())),
            "add" => a2!(move |a: u64, b: u64| a.wrapping_add(b) & m), "sub" => a2!(move |a: u64, b: u64| a.wrapping_sub(b) & m),
            "mul" if has("wide") => { let (dd, a, b) = (r!(0, 64), r!(1, bits), r!(2, bits)); let m2 = msk(bits * 2); Op::A2(v2(move |a, b| if s { (sx(a, bits).wrapping_mul(sx(b, bits))) as u64 & m2 } else { a.wrapping_mul(b) & m2 }), dd, a, b) }
            "mad" if has("wide") => { let (dd, a, b, c) = (r!(0, 64), r!(1, bits), r!(2, bits), r!(3, 64)); let m2 = msk(bits * 2); Op::A3(v3(move |a, b, c| (if s { (sx(a, bits).wrapping_mul(sx(b, bits))) as u64 } else { a.wrapping_mul(b) }).wrapping_add(c) & m2), dd, a, b, c) }
            "mul" if has("hi") => a2!(move |a, b| if s { ((sx(a, bits) as i128 * sx(b, bits) as i128) >> bits) as u64 & m } else { ((a as u128 * b as u128) >> bits) as u64 & m }),
            "mul" => a2!(move |a: u64, b: u64| a.wrapping_mul(b) & m), "mad" => a3!(move |a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c) & m),
            "div" => a2!(move |a, b| if b == 0 { m } else if s { sx(a, bits).wrapping_div(sx(b, bits)) as u64 & m } else { a / b }),
            "rem" => a2!(move |a, b| if b == 0 { a } else if s { sx(a, bits).wrapping_rem(sx(b, bits)) as u64 & m } else { a % b }),
            "min" => a2!(move |a, b| if s { if sx(a, bits) < sx(b, bits) { a } else { b } } else { a.min(b) }), "max" => a2!(move |a, b| if s { if sx(a, bits) > sx(b, bits) { a } else { b } } else { a.max(b) }),
            "neg" => a1!(move |a: u64| a.wrapping_neg() & m), "abs" => a1!(move |a| sx(a, bits).unsigned_abs() & m),
            "and" => a2!(|a, b| a & b), "or" => a2!(|a, b| a | b), "xor" => a2!(|a, b| a ^ b), "not" => a1!(move |a: u64| !a & m),
            "shl" => { let (dd, a, b) = (r!(0, bits), r!(1, bits), r!(2, 32)); Op::A2(v2(move |a, b| if b >= bits as u64 { 0 } else { (a << b) & m }), dd, a, b) }
            "shr" => { let (dd, a, b) = (r!(0, bits), r!(1, bits), r!(2, 32)); Op::A2(v2(move |a, b| if s { (sx(a, bits) >> b.min(bits as u64 - 1)) as u64 & m } else if b >= bits as u64 { 0 } else { a >> b }), dd, a, b) }
            "popc" => { let (dd, a) = (r!(0, 32), r!(1, bits)); Op::A1(v1(|a| a.count_ones() as u64), dd, a) }
            "clz" => { let (dd, a) = (r!(0, 32), r!(1, bits)); Op::A1(v1(move |a| (a.leading_zeros() - (64 - bits)) as u64), dd, a) }
            "brev" => a1!(move |a: u64| a.reverse_bits() >> (64 - bits)),
            "bfi" => { let (dd, a, b, c, l) = (r!(0, bits), r!(1, bits), r!(2, bits), r!(3, 32), r!(4, 32)); let t1 = self.new_reg();
                self.push(guard, neg, Op::A2(v2(|c, l| (c & 0xff) | (l & 0xff) << 8), t1, c, l), full);
                Op::A3(v3(move |a, b, cl| { let (c, l) = ((cl & 0xff) as u32, (cl >> 8) as u32); if c >= bits { return b } let fm = (msk(l.min(bits).max(1)) * (l > 0) as u64) << c & m; (b & !fm) | ((a << c) & fm) }), dd, a, b, t1) }
            "bfe" => a3!(move |a: u64, p: u64, l: u64| { let (p, l) = ((p & 0xff) as u32, (l & 0xff) as u32); if l == 0 { return 0 } if p >= bits { return if s && a >> (bits - 1) & 1 == 1 { m } else { 0 } }
                let l = l.min(bits - p); let v = (a >> p) & msk(l); if s { sx(v, l) as u64 & m } else { v } }),
            "prmt" => a3!(|a: u64, b: u64, c: u64| { let v = a | b << 32; let mut o = 0; for i in 0..4 { let n = c >> (4 * i) & 15; let mut y = v >> ((n & 7) * 8) & 0xff; if n & 8 != 0 { y = if y & 0x80 != 0 { 0xff } else { 0 } } o |= y << (8 * i) } o }),
            "lop3" => { let (dd, a, b, c) = (r!(0, 32), r!(1, 32), r!(2, 32), r!(3, 32)); let lut = parse_int(o[4]) as u64; Op::A3(v3(move |a, b, c| { let mut o = 0; for i in 0..8u64 { if lut >> i & 1 == 1 { o |= (if i & 4 != 0 { a } else { !a }) & (if i & 2 != 0 { b } else { !b }) & (if i & 1 != 0 { c } else { !c }) } } o & 0xffffffff }), dd, a, b, c) }
            "shf" => { let l = has("l"); let wrap = has("wrap"); a3!(move |a: u64, b: u64, c: u64| { let n = if wrap { c & 31 } else { c.min(32) }; let v = a | b << 32; if l { (v << n >> 32) & 0xffffffff } else { (v >> n) & 0xffffffff } }) }
            "setp" => {
                let cmp = parts[1]; let comb = parts.get(2).copied().filter(|x| matches!(*x, "and" | "or" | "xor"));
                let (pq, a, b) = (o[0], r!(1, bits), r!(2, bits)); let ps: Vec<&str> = pq.split('|').collect(); let p = self.reg(ps[0].trim())?;
                if ps.len() > 1 { return Err(unsup()) }
                let unord = |c: &str| c.len() == 3 && c.ends_with('u') && t.k == b'f';
                let un = unord(cmp); let base: String = if un { cmp[..2].into() } else { cmp.into() };
                let c: fn(std::cmp::Ordering) -> bool = match base.as_str() { "eq" => |o| o.is_eq(), "ne" => |o| o.is_ne(), "lt" | "lo" => |o| o.is_lt(), "le" | "ls" => |o| o.is_le(), "gt" | "hi" => |o| o.is_gt(), "ge" | "hs" => |o| o.is_ge(), "num" | "nan" => |_| true, _ => return Err(unsup()) };
                let isnan = base == "nan"; let isnum = base == "num";
                let g: Box<dyn Fn(u64, u64) -> bool + Send + Sync> = if t.k == b'f' || ish { let cv = move |x| if ish { hconv(x) as f64 } else if isf64 { d(x) } else { f(x) as f64 };
                        Box::new(move |a, b| match cv(a).partial_cmp(&cv(b)) { Some(o) => !isnan && c(o), None => un || (isnan && !isnum) }) }
                    else if s { Box::new(move |a, b| c(sx(a, bits).cmp(&sx(b, bits)))) } else { Box::new(move |a, b| c(a.cmp(&b))) };
                match comb { None => Op::A2(v2(move |a, b| g(a, b) as u64), p, a, b),
                    Some(k) => { let q = r!(3, 1); let k = k.as_bytes()[0]; Op::A3(v3(move |a, b, q| { let x = g(a, b) as u64; match k { b'a' => x & q, b'o' => x | q, _ => x ^ q } }), p, a, b, q) } }
            }
            "selp" => { let (dd, a, b, p) = (r!(0, bits), r!(1, bits), r!(2, bits), r!(3, 1)); Op::A3(v3(|a, b, p| if p != 0 { a } else { b }), dd, a, b, p) }
            "cvt" => {
                let (dt, st_) = (tys[0], tys[tys.len() - 1]);
                if dt.x2 && o.len() == 3 { let (dd, a, b) = (r!(0, 32), r!(1, 32), r!(2, 32)); let w = dt.k == b'w'; Op::A2(v2(move |a, b| { let q = |x| if w { f2bf(f(x)) } else { f2h(f(x)) } as u64; q(a) << 16 | q(b) }), dd, a, b) }
                else {
                    let (dd, a) = (r!(0, dt.bits), r!(1, st_.bits)); let sat = has("sat"); let rnd = parts.iter().find(|p| matches!(**p, "rn" | "rz" | "rm" | "rp" | "rni" | "rzi" | "rmi" | "rpi" | "rna")).copied().unwrap_or("").to_string();
                    let isflt = |t: Ty| matches!(t.k, b'f' | b'h' | b'w' | b't');
                    let ld = move |x: u64| -> f64 { match st_.k { b'h' => h2f(x as u16) as f64, b'w' => bf2f(x as u16) as f64, b'f' if st_.bits == 64 => d(x), b'f' | b't' => f(x) as f64, b's' => sx(x, st_.bits) as f64, _ => x as f64 } };
                    if isflt(dt) {
                        if matches!(rnd.as_str(), "rz" | "rm" | "rp") && !(isflt(st_) && dt.bits >= st_.bits) { return Err(unsup()) }
                        let big = matches!(st_.k, b's' | b'u') && st_.bits == 64; let sg = st_.k == b's';
                        Op::A1(v1(move |x| { let mut v = ld(x); match rnd.as_str() { "rni" => v = v.round_ties_even(), "rzi" => v = v.trunc(), "rmi" => v = v.floor(), "rpi" => v = v.ceil(), _ => {} }
                            if sat { v = if v.is_nan() { 0.0 } else { v.clamp(0.0, 1.0) } }
                            match dt.k { b'h' => f2h(v as f32) as u64, b'w' => f2bf(v as f32) as u64, b't' => ((v as f32).to_bits().wrapping_add(0x1000) & 0xffffe000) as u64, _ if dt.bits == 64 => if big && sg { (x as i64 as f64).to_bits() } else { v.to_bits() }, _ => if big { fb(if sg { x as i64 as f32 } else { x as f32 }) } else { fb(v as f32) } } }), dd, a)
                    } else if isflt(st_) {
                        let (db, ds) = (dt.bits, dt.k == b's');
                        Op::A1(v1(move |x| { let v = ld(x); let v = match rnd.as_str() { "rni" => v.round_ties_even(), "rmi" => v.floor(), "rpi" => v.ceil(), _ => v.trunc() };
                            if ds { let (lo, hi) = (-(2f64.powi(db as i32 - 1)), 2f64.powi(db as i32 - 1) - 1.0); (if v.is_nan() { 0 } else if db == 64 { v as i64 } else { v.clamp(lo, hi) as i64 }) as u64 & msk(db) }
                            else { if db == 64 { v as u64 } else { v.clamp(0.0, 2f64.powi(db as i32) - 1.0) as u64 } } }), dd, a)
                    } else { let (sb, ss, dm) = (st_.bits, st_.k == b's', msk(dt.bits)); if sat { return Err(unsup()) } Op::A1(v1(move |x| (if ss { sx(x, sb) as u64 } else { x & msk(sb) }) & dm), dd, a) }
                }
            }
            "bra" => { self.fix.push((self.code.len(), o[0].trim().into())); Op::Bra(0) }
            "ret" | "exit" => Op::Ret,
            "bar" | "barrier" if has("warp") => { let mk = r!(0, 32); Op::WarpSync(mk) }
            "bar" | "barrier" if has("cluster") => return Err(unsup()),
            "bar" | "barrier" => { if has("red") { return Err(unsup()) } let id = r!(0, 32); let cnt = if o.len() > 1 { r!(1, 32) } else { NOREG }; Op::Bar { id, cnt, arrive: has("arrive") } }
            "membar" | "fence" | "griddepcontrol" | "prefetch" | "prefetchu" | "nanosleep" | "pragma" => Op::Nop,
            "shfl" => { let m = if has("up") { ShflMode::Up } else if has("down") { ShflMode::Down } else if has("bfly") { ShflMode::Bfly } else { ShflMode::Idx };
                let ps: Vec<&str> = o[0].split('|').collect(); let dd = self.reg(ps[0].trim())?; let p = if ps.len() > 1 { self.reg(ps[1].trim())? } else { NOREG };
                Op::Shfl { m, d: dd, p, a: r!(1, 32), b: r!(2, 32), c: r!(3, 32), mask: r!(4, 32) } }
            "vote" => { let kind = if has("ballot") { 0 } else if has("any") { 1 } else if has("all") { 2 } else { 3 }; Op::Vote { kind, d: r!(0, 32), p: r!(1, 1), mask: r!(2, 32) } }
            "activemask" => Op::ActiveMask(r!(0, 32)),
            "cp" if has("async") && !has("bulk") && !has("mbarrier") => {
                if has("commit_group") { Op::CpCommit } else if has("wait_group") { let n = r!(0, 32); Op::CpWait(n) } else if has("wait_all") { Op::CpWaitAll }
                else { let (dst, src) = (self.addr(o[0])?, self.addr(o[1])?); let n = parse_int(o[2]) as u32; let srcn = if o.len() > 3 { r!(3, 32) } else { NOREG }; Op::CpAsync { dst, src, n, srcn } } }
            "ldmatrix" if has("m8n8") && has("b16") => { let dd = self.list(o[0], 32)?; let a = self.addr(o[1])?; Op::LdMatrix { d: dd, a, trans: has("trans") } }
            "mma" if has("sync") && (has("m16n8k16") || has("m16n8k8")) => {
                let ty_ = if tys.iter().any(|t| t.k == b'w') { MmaTy::Bf16 } else if tys.iter().any(|t| t.k == b't') { MmaTy::Tf32 } else if tys.len() == 4 && tys[1].k == b'h' { MmaTy::F16 } else { return Err(unsup()) };
                let k = if has("m16n8k16") { 16 } else { 8 }; let f16acc = tys[0].k == b'h';
                Op::Mma { d: self.list(o[0], 32)?, a: self.list(o[1], 32)?, b: self.list(o[2], 32)?, c: self.list(o[3], 32)?, ty: ty_, k, f16acc } }
            "atom" | "red" => { let is_red = parts[0] == "red"; let i0 = if is_red { 0 } else { 1 };
                let op = if has("add") { Atom::Add } else if has("min") { Atom::Min } else if has("max") { Atom::Max } else if has("and") { Atom::And } else if has("or") { Atom::Or } else if has("xor") { Atom::Xor } else if has("exch") { Atom::Exch } else if has("cas") { Atom::Cas } else { return Err(unsup()) };
                let dd = if is_red { self.new_reg() } else { r!(0, bits) }; let a = self.addr(o[i0])?; let b = r!(i0 + 1, bits); let c = if o.len() > i0 + 2 { r!(i0 + 2, bits) } else { NOREG };
                Op::Atomic { op, ty: t, sp: space(), d: dd, a, b, c } }
            _ => return Err(unsup()),
        };
        self.push(guard, neg, op, full); Ok(())
    }
}
fn parse_int(s: &str) -> i64 { let s = s.trim(); if let Some(h) = s.strip_prefix("0x") { i64::from_str_radix(h, 16).unwrap() } else { s.parse().unwrap() } }
fn split_off(s: &str) -> (&str, i64) {
    if let Some(i) = s.rfind('+') { let o = s[i + 1..].trim(); if let Ok(v) = o.parse::<i64>() { return (s[..i].trim(), v) } }
    (s.trim(), 0)
}
fn split_ops(s: &str) -> Vec<&str> {
    let (mut v, mut depth, mut st) = (vec![], 0, 0);
    for (i, c) in s.char_indices() { match c { '{' | '[' | '(' => depth += 1, '}' | ']' | ')' => depth -= 1, ',' if depth == 0 => { v.push(s[st..i].trim()); st = i + 1 } _ => {} } }
    if !s[st..].trim().is_empty() { v.push(s[st..].trim()) } v
}
fn strip_comments(s: &str) -> String { s.lines().map(|l| match l.find("//") { Some(i) => &l[..i], None => l }).collect::<Vec<_>>().join("\n") }

impl Module {
    pub fn parse(src: &str) -> Res<Module> {
        let src = strip_comments(src); let mut m = Module::default();
        for l in src.lines().take(20) { if let Some(r) = l.trim().strip_prefix(".target") { m.target = r.trim().into() } if let Some(r) = l.trim().strip_prefix(".version") { m.version = r.trim().into() } }
        let mut pos = 0;
        while let Some(i) = src[pos..].find(".entry") {
            let start = pos + i; let hd = &src[start + 6..]; let po = hd.find(['(', '{']).unwrap();
            let name = hd[..po].trim().to_string(); let b0 = start + 6 + po;
            let (mut params, mut off, mut syms) = (vec![], 0usize, HashMap::new()); let mut cur = b0;
            if src.as_bytes()[b0] == b'(' {
                let e = b0 + src[b0..].find(')').unwrap();
                for p in src[b0 + 1..e].split(',').map(str::trim).filter(|p| !p.is_empty()) {
                    let w: Vec<&str> = p.split_whitespace().collect(); let nm = *w.last().unwrap(); let mut al = 0; let mut tsz = 4; let mut it = w.iter();
                    while let Some(x) = it.next() { if *x == ".align" { al = it.next().unwrap().parse().unwrap() } else if let Some(t) = x.strip_prefix('.').and_then(ty) { tsz = (t.bits / 8) as usize } }
                    let (nm, n) = match nm.find('[') { Some(b) => (&nm[..b], nm[b + 1..nm.len() - 1].parse::<usize>().unwrap()), None => (nm, 1) };
                    let al = al.max(tsz); off = off.div_ceil(al) * al; syms.insert(nm.to_string(), (Space::Param, off as u64)); params.push(Param { off, size: tsz * n, align: al, name: nm.to_string() }); off += tsz * n;
                }
                cur = e + 1;
            }
            let body = cur + src[cur..].find('{').unwrap(); let dirs = &src[cur..body]; let maxntid = dirs.find(".maxntid").map(|i| dirs[i + 8..].trim().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).unwrap_or(1024);
            let line0 = src[..body].matches('\n').count() as u32 + 1;
            let mut p = P { scopes: vec![HashMap::new()], syms, consts: HashMap::new(), specs: vec![], nregs: 0, labels: HashMap::new(), fix: vec![], code: vec![], line: line0, srcl: 0, kname: &name };
            // module-level shared symbols (extern dynamic shared gets base after the statics; resolved at the end)
            let (mut sh, mut lo, mut dynsym) = (0u32, 0u32, vec![]);
            for l in src.lines() { let l = l.trim(); if l.starts_with(".extern .shared") { dynsym.push(l.trim_end_matches(';').split_whitespace().last().unwrap().split('[').next().unwrap().to_string()) } }
            for dsy in &dynsym { p.syms.insert(dsy.clone(), (Space::Shared, 0x8000_0000)); }
            let b = src.as_bytes(); let mut i = body + 1; let mut depth = 1;
            while depth > 0 {
                while b[i].is_ascii_whitespace() { if b[i] == b'\n' { p.line += 1 } i += 1 }
                match b[i] { b'{' => { depth += 1; p.scopes.push(HashMap::new()); i += 1; continue } b'}' => { depth -= 1; p.scopes.pop(); i += 1; continue } b';' => { i += 1; continue } _ => {} }
                let rest = &src[i..];
                if rest.starts_with(".loc\t") || rest.starts_with(".loc ") || rest.starts_with(".file") { let e = rest.find('\n').unwrap(); if rest.starts_with(".loc") { p.srcl = rest[4..e].split_whitespace().nth(1).and_then(|x| x.trim_end_matches(',').parse().ok()).unwrap_or(0) } i += e; continue }
                // label?
                let le = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap();
                if le > 0 && rest[le..].trim_start().starts_with(':') && !rest[le..].starts_with("::") { p.labels.insert(rest[..le].into(), p.code.len() as u32); i += le + rest[le..].find(':').unwrap() + 1; continue }
                let e = rest.find(';').unwrap(); let st = rest[..e].trim();
                if let Some(r) = st.strip_prefix(".reg") {
                    let r = r.trim(); let e2 = r.find(char::is_whitespace).unwrap();
                    for n in r[e2..].split(',').map(str::trim) {
                        if let Some(k) = n.find('<') { let c: u32 = n[k + 1..n.len() - 1].parse().unwrap(); for j in 0..c { let q = p.new_reg(); p.scopes.last_mut().unwrap().insert(format!("{}{}", &n[..k], j), q); } }
                        else { let q = p.new_reg(); p.scopes.last_mut().unwrap().insert(n.into(), q); }
                    }
                } else if st.starts_with(".shared") || st.starts_with(".local") {
                    let w: Vec<&str> = st.split_whitespace().collect(); let (mut al, mut tsz) = (1u32, 1u32); let mut it = w.iter();
                    while let Some(x) = it.next() { if *x == ".align" { al = it.next().unwrap().parse().unwrap() } else if let Some(t) = x.strip_prefix('.').and_then(ty) { tsz = t.bits / 8 } }
                    let nm = w.last().unwrap(); let (nm, n) = match nm.find('[') { Some(k) => (&nm[..k], nm[k + 1..nm.len() - 1].parse::<u32>().unwrap()), None => (*nm, 1) };
                    let al = al.max(tsz); let (c, sp) = if st.starts_with(".shared") { (&mut sh, Space::Shared) } else { (&mut lo, Space::Local) };
                    *c = c.div_ceil(al) * al; p.syms.insert(nm.into(), (sp, *c as u64)); *c += tsz * n;
                } else if st.starts_with('.') { /* .pragma etc. */ }
                else { p.inst(st).map_err(|e| EmuError(format!("kernel {}: {}", p.kname, e.0)))? }
                p.line += rest[..e].matches('\n').count() as u32; i += e + 1;
            }
            let fix = std::mem::take(&mut p.fix);
            for (k, l) in fix { let Some(&t) = p.labels.get(&l) else { bail!("unknown label {l}") }; p.code[k].op = Op::Bra(t) }
            sh = sh.div_ceil(16) * 16;
            let mut consts: Vec<(u32, u64)> = p.consts.iter().map(|(v, r)| (*r, if *v & 0xffff_ffff_8000_0000 == 0x8000_0000 && !dynsym.is_empty() && *v < 0x8001_0000 { v - 0x8000_0000 + sh as u64 } else { *v })).collect(); consts.sort();
            p.line = 0; p.push(NOREG, false, Op::Ret, "ret (implicit)");
            m.kernels.insert(name.clone(), Kernel { name: name.clone(), params, param_bytes: off, nregs: p.nregs, consts, specs: p.specs, code: p.code, shared_bytes: sh, local_bytes: lo, maxntid });
            pos = i;
        }
        Ok(m)
    }
}
