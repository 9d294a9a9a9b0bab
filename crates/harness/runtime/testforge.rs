//! The part of a test program that runs the tests and reports on them. Compiled once, linked into every program.
//!
//! Every line goes to a pipe whose number comes in a variable, tagged with a number that comes in another; both variables
//! are gone before the first test begins.

use std::env;
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::sync::{Mutex, MutexGuard};
use std::{mem, panic, process, thread};

pub struct Test {
    number: usize,
    name: &'static str,
    run: fn() -> Result<(), String>,
    ignored: bool,
    should_panic: Option<Option<&'static str>>,
}

impl Test {
    /// `number` counts the tests of the text, also those that a condition leaves out.
    pub const fn new(number: usize, name: &'static str, run: fn() -> Result<(), String>) -> Self {
        Self { number, name, run, ignored: false, should_panic: None }
    }

    pub const fn ignored(mut self, yes: bool) -> Self {
        self.ignored = yes;
        self
    }

    pub const fn should_panic(mut self, yes: bool, expected: Option<&'static str>) -> Self {
        self.should_panic = if yes { Some(expected) } else { None };
        self
    }
}

/// Bytes of a test's message that are passed on.
const MAX_MESSAGE: usize = 16 << 10;

struct Channel {
    pipe: File,
    nonce: String,
}

static CHANNEL: Mutex<Option<Channel>> = Mutex::new(None);
static CURRENT: Mutex<Option<&'static str>> = Mutex::new(None);
static PLACE: Mutex<Option<String>> = Mutex::new(None);
static HOOK: Mutex<Option<fn() -> String>> = Mutex::new(None);

pub fn result(value: impl process::Termination) -> Result<(), String> {
    if value.report() == process::ExitCode::SUCCESS { Ok(()) } else { Err("the test returned an error".to_string()) }
}

/// Ends the current test as one that ran out of time, and the process with it.
pub fn out_of_fuel() -> ! {
    let current = lock(&CURRENT).take();
    if let Some(name) = current {
        let extra = hook_text();
        send("timeout", name, Some("out of loop fuel"), extra.as_deref());
    }
    process::exit(124)
}

pub fn main(tests: Vec<Test>, hook: Option<fn() -> String>) {
    let nonce = taken("TESTFORGE_NONCE");
    let fd = taken("TESTFORGE_FD").parse().unwrap_or(-1);
    let only = taken("TESTFORGE_ONLY");
    let fail_fast = !taken("TESTFORGE_FAIL_FAST").is_empty();
    let pipe = unsafe { <File as FromRawFd>::from_raw_fd(fd) };
    *lock(&CHANNEL) = Some(Channel { pipe, nonce });
    *lock(&HOOK) = hook;
    panic::set_hook(Box::new(|info| {
        *lock(&PLACE) = info.location().map(|l| format!("{}:{}:{}", l.file(), l.line(), l.column()));
    }));
    // Whatever the hook reads from the environment is gone before the first test could see it.
    drop(hook_text());
    for test in &tests {
        if is_chosen(&only, test.number) && !one(test) && fail_fast {
            break;
        }
    }
    send("done", "", None, None);
    process::exit(0)
}

/// One hexadecimal digit stands for four tests, the lowest bit for the first of them.
fn is_chosen(digits: &str, number: usize) -> bool {
    let digit = digits.as_bytes().get(number / 4).and_then(|digit| char::from(*digit).to_digit(16));
    digit.unwrap_or(0) >> (number % 4) & 1 == 1
}

fn one(test: &Test) -> bool {
    if test.ignored {
        send("ignored", test.name, None, None);
        return true;
    }
    *lock(&CURRENT) = Some(test.name);
    *lock(&PLACE) = None;
    send("start", test.name, None, None);
    let run = test.run;
    let ended = match thread::Builder::new().name(test.name.to_string()).spawn(move || run()) {
        Ok(thread) => thread.join(),
        Err(error) => Ok(Err(format!("no thread for the test: {}", error))),
    };
    let failure = judge(test, ended);
    if lock(&CURRENT).take().is_none() {
        // Another thread of the test is ending the process.
        thread::park();
    }
    let extra = hook_text();
    match &failure {
        None => send("passed", test.name, None, extra.as_deref()),
        Some(message) => send("failed", test.name, Some(message), extra.as_deref()),
    }
    failure.is_none()
}

fn judge(test: &Test, ended: thread::Result<Result<(), String>>) -> Option<String> {
    match (ended, test.should_panic) {
        (Ok(Ok(())), None) => None,
        (Ok(Ok(())), Some(_)) => Some("the test did not panic as it should".to_string()),
        (Ok(Err(message)), _) => Some(message),
        (Err(payload), expected) => {
            let text = match (payload.downcast_ref::<&'static str>(), payload.downcast_ref::<String>()) {
                (Some(text), _) => Some(text.to_string()),
                (_, Some(text)) => Some(text.clone()),
                _ => None,
            };
            // Dropping a foreign value could panic again.
            mem::forget(payload);
            match expected {
                Some(None) => None,
                Some(Some(part)) => match &text {
                    Some(text) if text.contains(part) => None,
                    _ => Some(format!("the panic's message does not contain {:?}: {:?}", part, text)),
                },
                None => {
                    let text = text.unwrap_or_else(|| "panicked with a value that is no text".to_string());
                    let place = lock(&PLACE).take();
                    Some(place.map_or(text.clone(), |place| format!("{}: {}", place, text)))
                }
            }
        }
    }
}

fn hook_text() -> Option<String> {
    let hook = *lock(&HOOK);
    hook.map(|hook| hook())
}

unsafe extern "C" {
    fn getenv(name: *const std::ffi::c_char) -> *mut std::ffi::c_char;
}

/// Reads a variable and wipes it: removing it alone would leave its text in memory. Only before the first test.
pub fn taken(name: &str) -> String {
    let value = env::var(name).unwrap_or_default();
    if let Ok(name) = std::ffi::CString::new(name) {
        // SAFETY: this is the only thread so far, and the text is as long as the value that was read.
        unsafe {
            let text = getenv(name.as_ptr());
            if !text.is_null() {
                text.write_bytes(b'0', value.len());
            }
        }
    }
    env::remove_var(name);
    value
}

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn send(event: &str, test: &str, message: Option<&str>, extra: Option<&str>) {
    let mut channel = lock(&CHANNEL);
    let Some(channel) = channel.as_mut() else { return };
    let mut line = format!("\n{} {{\"event\":\"{}\",\"test\":", channel.nonce, event);
    quote(&mut line, test);
    // A panic may say more than the pipe's reader keeps; then the verdict itself would be lost.
    let message = message.map(|text| &text[..text.floor_char_boundary(MAX_MESSAGE)]);
    for (name, value) in [("message", message), ("extra", extra)] {
        if let Some(value) = value {
            line.push_str(&format!(",\"{}\":", name));
            quote(&mut line, value);
        }
    }
    line.push_str("}\n");
    let _ = channel.pipe.write_all(line.as_bytes());
}

fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}
