//! The module that instrumented code calls, as source text, and the report that it writes after each test.

use std::collections::BTreeSet;

/// Chooses the mutant: its id, or 0 for the function as it is.
pub const ENV_MUTANT: &str = "TESTFORGE_MUTANT";
/// Loop iterations, closure calls and calls of the function that one test may make.
pub const ENV_FUEL: &str = "TESTFORGE_FUEL";
/// Fuel where the variable is not set: for runs of the function as it is.
pub const DEFAULT_FUEL: u64 = 20_000_000;

/// What one test reached. Counters start anew after each test.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Loop iterations, closure calls, calls.
    pub ticks: u64,
    /// The function was called.
    pub entered: bool,
    pub sites: BTreeSet<u32>,
    pub branches: BTreeSet<u32>,
    pub lines: BTreeSet<u32>,
}

impl Reach {
    /// Reads what `report()` wrote. `None` when the text is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        Some(Self {
            ticks: field("ticks")?.parse().ok()?,
            entered: field("entered")? == "true",
            sites: numbers(field("sites")?)?,
            branches: numbers(field("branches")?)?,
            lines: numbers(field("lines")?)?,
        })
    }

    /// Adds what another test reached; ticks become the larger of the two.
    pub fn merge(&mut self, other: &Self) {
        self.ticks = self.ticks.max(other.ticks);
        self.entered |= other.entered;
        self.sites.extend(&other.sites);
        self.branches.extend(&other.branches);
        self.lines.extend(&other.lines);
    }
}

fn numbers(text: &str) -> Option<BTreeSet<u32>> {
    text.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

/// The module's source. Tests may not be able to guess `module`, or they could ask which mutant is on; nor `shift`, or they
/// could find the switch in memory and read it. `counts`: of sites, branches and lines.
pub(crate) fn module(module: &str, shift: u32, counts: [usize; 3]) -> String {
    let [n_sites, n_branches, n_lines] = counts;
    TEMPLATE
        .replace("MODULE", module)
        .replace("SHIFT_VALUE", &shift.to_string())
        .replace("N_SITES", &n_sites.to_string())
        .replace("N_BRANCHES", &n_branches.to_string())
        .replace("N_LINES", &n_lines.to_string())
        .replace("ENV_MUTANT", ENV_MUTANT)
        .replace("ENV_FUEL", ENV_FUEL)
        .replace("DEFAULT_FUEL", &DEFAULT_FUEL.to_string())
}

const TEMPLATE: &str = r#"#[allow(warnings)]
mod MODULE {
    use ::std::cell::Cell;
    use ::std::ops::ControlFlow;
    use ::std::option::Option;
    use ::std::result::Result;
    use ::std::string::{String, ToString};
    use ::std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
    use ::std::task::Poll;
    const SHIFT: u32 = SHIFT_VALUE;
    static SHIFTED: AtomicU32 = AtomicU32::new(0);
    static LOADED: AtomicBool = AtomicBool::new(false);
    static FUEL: AtomicU64 = AtomicU64::new(0);
    static TICKS: AtomicU64 = AtomicU64::new(0);
    static ENTERED: AtomicBool = AtomicBool::new(false);
    static SITES: [AtomicBool; N_SITES] = [const { AtomicBool::new(false) }; N_SITES];
    static BRANCHES: [AtomicBool; N_BRANCHES] = [const { AtomicBool::new(false) }; N_BRANCHES];
    static LINES: [AtomicBool; N_LINES] = [const { AtomicBool::new(false) }; N_LINES];
    fn number(name: &str) -> Option<u64> {
        crate::__testforge::taken(name).parse().ok()
    }
    #[cold]
    fn load() {
        FUEL.store(number("ENV_FUEL").unwrap_or(DEFAULT_FUEL), Relaxed);
        SHIFTED.store((number("ENV_MUTANT").unwrap_or(0) as u32).wrapping_add(SHIFT), Relaxed);
        LOADED.store(true, Relaxed);
    }
    #[inline]
    pub fn at(site: usize) -> u32 {
        SITES[site].store(true, Relaxed);
        if !LOADED.load(Relaxed) {
            load();
        }
        SHIFTED.load(Relaxed).wrapping_sub(SHIFT)
    }
    #[inline]
    pub fn tick() {
        if TICKS.fetch_add(1, Relaxed) >= FUEL.load(Relaxed) {
            spent();
        }
    }
    #[cold]
    fn spent() {
        if !LOADED.load(Relaxed) {
            load();
        }
        if TICKS.load(Relaxed) > FUEL.load(Relaxed) {
            crate::__testforge::out_of_fuel();
        }
    }
    #[inline]
    pub fn enter() {
        ENTERED.store(true, Relaxed);
        tick();
    }
    #[inline]
    pub fn hit(branch: usize) -> bool {
        BRANCHES[branch].store(true, Relaxed);
        true
    }
    #[inline]
    pub fn line(line: usize) {
        LINES[line].store(true, Relaxed);
    }
    #[inline]
    pub fn lhs(value: bool, branch: usize, decides: bool) -> bool {
        if value == decides {
            hit(branch);
        }
        value
    }
    pub trait Tried {
        fn leaves(&self) -> bool;
    }
    impl<T, E> Tried for Result<T, E> {
        fn leaves(&self) -> bool { self.is_err() }
    }
    impl<T> Tried for Option<T> {
        fn leaves(&self) -> bool { self.is_none() }
    }
    impl<B, C> Tried for ControlFlow<B, C> {
        fn leaves(&self) -> bool { self.is_break() }
    }
    impl<T, E> Tried for Poll<Result<T, E>> {
        fn leaves(&self) -> bool { if let Poll::Ready(Result::Err(_)) = self { true } else { false } }
    }
    #[inline]
    pub fn tried<T: Tried>(value: T, on: usize, off: usize) -> T {
        hit(if value.leaves() { off } else { on });
        value
    }
    pub struct Loop {
        ran: Cell<bool>,
        zero: usize,
        some: usize,
    }
    pub fn enter_loop(zero: usize, some: usize) -> Loop {
        Loop { ran: Cell::new(false), zero, some }
    }
    impl Loop {
        #[inline]
        pub fn again(&self) {
            if !self.ran.replace(true) {
                hit(self.some);
            }
        }
        #[inline]
        pub fn end(&self) {
            if !self.ran.get() {
                hit(self.zero);
            }
        }
    }
    fn taken(name: &str, flags: &[AtomicBool], out: &mut String) {
        out.push_str(name);
        let mut first = true;
        for (i, flag) in flags.iter().enumerate() {
            if flag.swap(false, Relaxed) {
                if !first {
                    out.push(',');
                }
                first = false;
                out.push_str(&i.to_string());
            }
        }
    }
    pub fn report() -> String {
        if !LOADED.load(Relaxed) {
            load();
        }
        let mut out = String::from("ticks=");
        out.push_str(&TICKS.swap(0, Relaxed).to_string());
        out.push_str(if ENTERED.swap(false, Relaxed) { " entered=true" } else { " entered=false" });
        taken(" sites=", &SITES, &mut out);
        taken(" branches=", &BRANCHES, &mut out);
        taken(" lines=", &LINES, &mut out);
        out
    }
}
"#;

#[cfg(test)]
mod test {
    use super::{Reach, module};

    #[test]
    fn the_module_is_rust() {
        assert!(syn::parse_file(&module("m", 7, [0, 3, 2])).is_ok());
    }

    /// Where one of these words occurs the harness leaves the clock of a test alone; the module must not decide that.
    #[test]
    fn the_module_names_no_clock() {
        let source = module("m", 1, [1, 1, 1]);
        let words: Vec<&str> = source.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        for name in ["pause", "resume", "advance", "Instant", "SystemTime", "elapsed", "thread"] {
            assert!(!words.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_report_is_read_back() {
        let reach = Reach::parse("ticks=12 entered=true sites=0,3 branches= lines=1").unwrap();
        assert_eq!((reach.ticks, reach.entered), (12, true));
        assert_eq!(reach.sites, [0, 3].into());
        assert!(reach.branches.is_empty());
        assert_eq!(Reach::parse("ticks=x"), None);
        assert_eq!(Reach::parse(""), None);
    }
}
