//! A proxy that passes requests on to a server, except those that it spoils: it answers them wrongly, late or never.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::http::{self, Answer, Request};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is passed on.
    Passed,
    /// The server never receives it, and the answer is this status and error code.
    Refused(u16, &'static str),
    /// The server never receives it, and there is no answer.
    Silent,
    /// It is passed on, but its answer is lost: the connection ends.
    Lost,
    /// It is passed on after a while.
    Late(Duration),
}

type Choice = Box<dyn Fn(&Request, u64) -> Fate + Send>;

/// A proxy before a server.
#[derive(Clone)]
pub struct Spoiled {
    pub port: u16,
    choice: Arc<Mutex<Choice>>,
    count: Arc<AtomicU64>,
}

impl Spoiled {
    /// Passes everything on at first.
    pub fn before(server: u16) -> Spoiled {
        let choice: Arc<Mutex<Choice>> = Arc::new(Mutex::new(Box::new(|_, _| Fate::Passed)));
        let count = Arc::new(AtomicU64::new(0));
        let (chosen, counted) = (choice.clone(), count.clone());
        let port = http::serve(move |request| {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let fate = (chosen.lock().unwrap())(request, number);
            match fate {
                Fate::Passed => Some(passed_on(server, request)),
                Fate::Refused(status, code) => Some(Answer::error(status, code)),
                Fate::Silent => None,
                Fate::Lost => {
                    passed_on(server, request);
                    // What a server's proxy answers when the server is gone.
                    Some(Answer::error(502, "BadGateway"))
                }
                Fate::Late(pause) => {
                    std::thread::sleep(pause);
                    Some(passed_on(server, request))
                }
            }
        });
        Spoiled { port, choice, count }
    }

    /// Sets the choice from now on; requests are numbered from 0 again.
    pub fn choose(&self, choice: impl Fn(&Request, u64) -> Fate + Send + 'static) {
        *self.choice.lock().unwrap() = Box::new(choice);
        self.count.store(0, Ordering::SeqCst);
    }

    /// Returns the number of requests since the last choice.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

fn passed_on(server: u16, request: &Request) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", server)).unwrap();
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
    for (name, value) in request.headers.iter().filter(|(name, _)| name != "connection") {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&request.body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap();
    let mut passed = Answer::new(status, body);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let name = name.to_ascii_lowercase();
        assert_ne!(name, "transfer-encoding", "this server knows how long its answers are");
        // A HEAD answer's length is that of a body that isn't sent.
        if request.method == "HEAD" && name == "content-length" {
            passed.body = vec![0; value.trim().parse().unwrap()];
        } else if !["content-length", "connection"].contains(&name.as_str()) {
            passed.headers.push((name, value.trim().to_owned()));
        }
    }
    passed
}
