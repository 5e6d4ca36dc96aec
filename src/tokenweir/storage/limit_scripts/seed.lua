-- Tell what was used of a bucket that is not known; see `Buckets.seed`. ARGV: bucket, what was used and when, ids of charges that are in it.

local bucket = read_buckets(ARGV[4], 1)[1]
local used, at = unpack_from('<i8i8', ARGV[5])
if bucket.kind == GAUGE then return 0 end
local s = read_state(call('GET', prefix .. 'b:' .. bucket.id))
if s and s.kind == bucket.kind and s.known then return 0 end
if not s or s.kind ~= bucket.kind then s = new_state(bucket, true) end
s.known, s.used, s.num = true, used, 0
if bucket.kind == LEVEL then
  s.used, s.refill, s.period = math.max(used, 0), bucket.refill, bucket.period
  -- The time of the seed is of another clock; one that is ahead must not keep the level from leaking.
  s.at = ARGV[1] == '' and math.min(at, now) or at
end
local key = prefix .. 'c:' .. bucket.id
call('DEL', key)
for i = 6, #ARGV do call('ZADD', key, string.format('%.0f', now), ARGV[i]) end
if #ARGV >= 6 then call('EXPIRE', key, seconds_left(bucket, s)) end
save(bucket, s)
return 1
