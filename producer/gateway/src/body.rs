//! Reads the body of a request: never more than allowed, never longer than allowed, never more at once than the process may hold.

use std::{io::Read as _, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use flate2::read::GzDecoder;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use crate::problem::{Kind, Problem};

/// Memory is counted in pieces of so many bytes.
const PIECE: usize = 1024;
/// A body is there as bytes, as a document, as a job and as what is published.
const COPIES: usize = 4;
/// How long a request waits for memory that others hold.
pub const WAIT_FOR_MEMORY: Duration = Duration::from_secs(5);
/// A body of unknown length is counted in steps of so many bytes.
const STEP: usize = 64 * 1024;
/// Of a body that nobody wants so much is read, so that the client sees the answer instead of a reset connection.
const DISCARD_MAX: usize = 1024 * 1024;
const DISCARD_LIMIT: Duration = Duration::from_secs(2);

/// Bytes that all requests may hold together.
#[derive(Debug, Clone)]
pub struct Memory {
    pieces: Arc<Semaphore>,
    wait: Duration,
}

/// The right to hold some of it, given back when it is dropped.
#[derive(Debug, Default)]
pub struct Held(Option<OwnedSemaphorePermit>);

impl Memory {
    /// So many bytes, and how long a request waits for some of them.
    pub fn new(bytes: usize, wait: Duration) -> Self {
        let pieces = Semaphore::new((bytes / PIECE).clamp(1, Semaphore::MAX_PERMITS));
        Self { pieces: Arc::new(pieces), wait }
    }

    /// Waits for the right to hold so many bytes more.
    pub async fn take(&self, bytes: usize, held: &mut Held) -> Result<(), Problem> {
        let pieces = u32::try_from((bytes * COPIES).div_ceil(PIECE)).unwrap_or(u32::MAX);
        let busy = || Problem::new(Kind::Unavailable, "This gateway is busy with large requests.").retry_after(2);
        let acquired = timeout(self.wait, Arc::clone(&self.pieces).acquire_many_owned(pieces)).await;
        let permit = acquired.map_err(|_| busy())?.map_err(|_| busy())?;
        match &mut held.0 {
            Some(all) => all.merge(permit),
            none => *none = Some(permit),
        }
        Ok(())
    }
}

/// How a body is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes, before and after decompression.
    pub bytes: usize,
    /// Time for all of it.
    pub time: Duration,
}

/// Reads all of a body and undoes its coding.
pub async fn read<B>(headers: &HeaderMap, body: B, limits: Limits, memory: &Memory) -> Result<(Bytes, Held), Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    let is_gzip = is_gzip(headers)?;
    let length = body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if length.is_some_and(|length| length > limits.bytes) {
        discard(body).await;
        return Err(too_large(limits.bytes));
    }
    let mut held = Held::default();
    memory.take(length.unwrap_or(STEP), &mut held).await?;
    let counted = length.unwrap_or(STEP);
    let bytes = collect(body, limits, counted, memory, &mut held).await?;
    if !is_gzip {
        return Ok((bytes, held));
    }
    memory.take(limits.bytes, &mut held).await?;
    Ok((unzipped(&bytes, limits.bytes)?, held))
}

/// `counted` bytes are held already.
async fn collect<B>(
    mut body: B,
    limits: Limits,
    mut counted: usize,
    memory: &Memory,
    held: &mut Held,
) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    let end = Instant::now() + limits.time;
    let mut bytes = BytesMut::with_capacity(counted.min(limits.bytes));
    loop {
        let late = || Problem::new(Kind::Slow, "The body did not arrive in time.");
        match timeout_at(end, body.frame()).await.map_err(|_| late())? {
            None => return Ok(bytes.freeze()),
            Some(Err(_)) => return Err(Problem::new(Kind::Malformed, "The connection ended within the body.")),
            Some(Ok(frame)) => {
                let Some(data) = frame.data_ref() else { continue };
                if bytes.len() + data.len() > limits.bytes {
                    discard(body).await;
                    return Err(too_large(limits.bytes));
                }
                while bytes.len() + data.len() > counted {
                    memory.take(STEP, held).await?;
                    counted += STEP;
                }
                bytes.extend_from_slice(data);
            }
        }
    }
}

/// Reads what is left of a body that nobody wants, up to a bound.
pub async fn discard<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > DISCARD_MAX {
                return;
            }
        }
    };
    // Whoever sends slower than that gets the reset.
    let _ = timeout(DISCARD_LIMIT, reading).await;
}

fn too_large(max: usize) -> Problem {
    Problem::new(Kind::TooLarge, format!("A body has at most {max} bytes; put large files behind a link."))
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, Problem> {
    let codings: Vec<_> = headers.get_all(header::CONTENT_ENCODING).iter().collect();
    match codings.as_slice() {
        [] => Ok(false),
        [one] if one.as_bytes().eq_ignore_ascii_case(b"identity") => Ok(false),
        [one] if one.as_bytes().eq_ignore_ascii_case(b"gzip") => Ok(true),
        _ => Err(Problem::new(Kind::UnsupportedMedia, "A body is plain, or `Content-Encoding: gzip`.")),
    }
}

fn unzipped(bytes: &[u8], max: usize) -> Result<Bytes, Problem> {
    let mut out = Vec::new();
    let bound = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    GzDecoder::new(bytes)
        .take(bound)
        .read_to_end(&mut out)
        .map_err(|_| Problem::new(Kind::Malformed, "The body is no gzip, or a part of it is missing."))?;
    if out.len() > max { Err(too_large(max)) } else { Ok(Bytes::from(out)) }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, io::Write as _};

    use flate2::{Compression, write::GzEncoder};
    use futures_util::stream;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LIMITS: Limits = Limits { bytes: 1000, time: Duration::from_secs(5) };

    fn gzip(bytes: &[u8]) -> Bytes {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap().into()
    }

    fn coding(name: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_ENCODING, name.parse().unwrap())])
    }

    async fn read_plain(headers: &HeaderMap, body: Bytes) -> Result<Bytes, Kind> {
        let memory = Memory::new(1 << 20, SHORT);
        let read = read(headers, Full::new(body), LIMITS, &memory).await;
        read.map(|(bytes, _)| bytes).map_err(|problem| problem.kind)
    }

    fn pieces(sizes: &[usize]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + use<> {
        let frames: Vec<_> = sizes.iter().map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; *size])))).collect();
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn bodies_end_at_the_limit_before_and_after_decompression() {
        let (none, gz) = (HeaderMap::new(), coding("gzip"));
        assert_eq!(read_plain(&none, Bytes::from(vec![b'x'; 1000])).await.unwrap().len(), 1000);
        assert_eq!(read_plain(&none, Bytes::from(vec![b'x'; 1001])).await, Err(Kind::TooLarge));
        assert_eq!(read_plain(&gz, gzip(b"hello")).await.unwrap(), "hello");
        assert_eq!(read_plain(&gz, gzip(&vec![0; 1000])).await.unwrap().len(), 1000);
        assert_eq!(read_plain(&gz, gzip(&vec![0; 10_000_000])).await, Err(Kind::TooLarge), "a bomb");
        assert_eq!(read_plain(&gz, gzip(b"hello").slice(..10)).await, Err(Kind::Malformed));
        assert_eq!(read_plain(&gz, "hello".into()).await, Err(Kind::Malformed));
        assert_eq!(read_plain(&coding("br"), "hello".into()).await, Err(Kind::UnsupportedMedia));
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_ends_at_the_limit_too() {
        let memory = Memory::new(1 << 20, SHORT);
        let (bytes, _held) = read(&HeaderMap::new(), pieces(&[400, 600]), LIMITS, &memory).await.unwrap();
        assert_eq!(bytes.len(), 1000);
        let refused = read(&HeaderMap::new(), pieces(&[400, 601]), LIMITS, &memory).await.unwrap_err();
        assert_eq!(refused.kind, Kind::TooLarge);
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let refused = read(&HeaderMap::new(), silent, Limits { time: SHORT, ..LIMITS }, &Memory::new(1 << 20, SHORT))
            .await
            .unwrap_err();
        assert_eq!(refused.kind, Kind::Slow);
    }

    #[tokio::test]
    async fn requests_wait_for_memory_and_are_refused_when_it_does_not_come() {
        let memory = Memory::new(8 * PIECE, SHORT);
        let body = || Full::new(Bytes::from(vec![b'x'; 1000]));
        let (_, first) = read(&HeaderMap::new(), body(), LIMITS, &memory).await.unwrap();
        let (_, second) = read(&HeaderMap::new(), body(), LIMITS, &memory).await.unwrap();
        let refused = read(&HeaderMap::new(), body(), LIMITS, &memory).await.unwrap_err();
        assert_eq!((refused.kind, refused.retry_after), (Kind::Unavailable, Some(2)));
        drop(first);
        assert!(read(&HeaderMap::new(), body(), LIMITS, &memory).await.is_ok());
        drop(second);
    }
}
