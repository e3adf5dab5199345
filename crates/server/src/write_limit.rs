//! Connections whose peer must take what is written to it.
//!
//! An answer holds memory until it was sent. A peer that asks and does not read, or
//! reads a byte now and then, would hold it for as long as it likes.

use std::future::{Future, Ready, ready};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Closes connections whose peer does not take what is ready for it within this time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteLimit(pub(crate) Duration);

impl<I, S> Accept<I, S> for WriteLimit {
    type Stream = Limited<I>;
    type Service = S;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        ready(Ok((Limited::new(stream, self.0), service)))
    }
}

/// A stream whose writes fail once the peer has not taken all of them in time: from
/// the first write that had to wait, to the flush that follows when nothing is left.
pub(crate) struct Limited<I> {
    stream: I,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<I> Limited<I> {
    fn new(stream: I, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            waiting: None,
        }
    }

    /// What a write gave, or that it has waited for too long.
    fn limited<T>(
        &mut self,
        context: &mut Context<'_>,
        write: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if write.is_pending() {
            let limit = self.limit;
            let waiting = self
                .waiting
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
            ready!(waiting.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        write
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Limited<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Limited<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limited(context, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.limited(context, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.stream).poll_flush(context);
        if flush.is_ready() {
            self.waiting = None;
        }
        self.limited(context, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_each_answer_in_time_is_never_cut_off() {
        const ANSWERS: u32 = 4;
        let limit = Duration::from_secs(2);
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Limited::new(near, limit);
        let peer = tokio::spawn(async move {
            for _ in 0..ANSWERS {
                tokio::time::sleep(limit / 3).await;
                far.read_exact(&mut [0; 16]).await.unwrap();
            }
        });
        for _ in 0..ANSWERS {
            near.write_all(&[1; 16]).await.unwrap();
            near.flush().await.unwrap();
        }
        peer.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_takes_a_byte_now_and_then_is_cut_off() {
        let limit = Duration::from_millis(300);
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Limited::new(near, limit);
        tokio::spawn(async move {
            while far.read_u8().await.is_ok() {
                tokio::time::sleep(limit / 10).await;
            }
        });
        let began = tokio::time::Instant::now();
        let error = near.write_all(&[1; 200]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= limit);
    }
}
